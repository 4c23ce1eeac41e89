"""What the residual blocks of a U-Net receive of the noise level and the class, cached."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CACHE_BYTES = 32 * 2**20
MAX_ENTRIES = 16_384

Embed = Callable[[Tensor, Tensor | None, torch.dtype], Tensor]


class EmbeddingCache:
    """The projections of an embedding to all residual blocks, side by side in one row, cached by (t, label).

    The trajectories of a plan visit the same times, so each pair is computed once.

    Attributes:
        capacity: How many pairs it holds.
    """

    def __init__(self, embed: Embed, project: nn.Module, width: int) -> None:
        """embed: `UNet.embed`; project: (B, embed_dim) → (B, width), the activation and the layers of all blocks."""
        self._embed = embed
        self._project = project
        # Four bytes for each float32.
        self.capacity = max(1, min(MAX_ENTRIES, CACHE_BYTES // (4 * width)))
        self._rows = torch.empty(self.capacity, width)
        self._index: dict[tuple[float, ...], int] = {}

    def __call__(self, t: Tensor, label: Tensor | None) -> Tensor:
        """t, label: (B,). Returns (B, width)."""
        pairs = list(zip(t.tolist(), label.tolist(), strict=True)) if label is not None else [(x,) for x in t.tolist()]
        if any(pair not in self._index for pair in pairs):
            # Reversed, so that the first occurrence of a pair is written last and stays.
            first = {pair: k for k, pair in reversed(list(enumerate(pairs)))}
            # A batch that does not fit is computed as it is; the cache keeps what it has.
            if len(first) > self.capacity:
                return self._compute(t, label)
            self._add(first, t, label)
        return self._rows[[self._index[pair] for pair in pairs]]

    def _add(self, first: dict[tuple[float, ...], int], t: Tensor, label: Tensor | None) -> None:
        """Compute the new pairs of a batch; if the cache is full, empty it before.

        first: where in the batch each pair occurs first.
        """
        new = [pair for pair in first if pair not in self._index]
        if len(self._index) + len(new) > self.capacity:
            self._index.clear()
            new = list(first)
        members = [first[pair] for pair in new]
        start = len(self._index)
        self._rows[start : start + len(new)] = self._compute(t[members], label[members] if label is not None else None)
        self._index.update({pair: start + k for k, pair in enumerate(new)})

    def _compute(self, t: Tensor, label: Tensor | None) -> Tensor:
        # (B,) → (B, embed_dim) → (B, width)
        return self._project(self._embed(t, label, torch.float32))
