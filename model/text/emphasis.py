"""Emphasis applied to hidden states, as in AUTOMATIC1111's web UI."""

from __future__ import annotations

from torch import Tensor


def emphasize(states: Tensor, weights: Tensor) -> Tensor:
    """Hidden states multiplied by their tokens' weights, then rescaled to the mean that they had.

    states: (B, N, C); weights: (B, N). Each of the B sequences has a mean of its own, so that a prompt's states do not
    depend on the rest of the batch. Sequences whose weights are all 1 keep their states bit by bit.
    """
    weighted = states * weights[..., None].to(states.dtype)
    before, after = states.mean(dim=(1, 2), keepdim=True), weighted.mean(dim=(1, 2), keepdim=True)
    plain = (weights == 1).all(dim=1)[:, None, None]  # (B, 1, 1)
    return states.where(plain, weighted * (before / after))
