"""The conditioning of a batch: named tensors that are joined and selected together."""

from __future__ import annotations

import pytest
import torch

from denoised.model.serving.conditioning import Conditioning, ConditioningRequest


def of_text(count: int, first: int = 0) -> Conditioning:
    """What a text-conditioned network takes: hidden states, a pooled vector and size ids."""
    ids = torch.arange(first, first + count)
    return Conditioning(
        {
            "hidden_states": ids.view(-1, 1, 1) + torch.zeros(count, 7, 4),
            "pooled": ids.view(-1, 1) + torch.zeros(count, 5),
            "size_ids": ids.view(-1, 1).expand(count, 6),
        }
    )


def test_stacked_parts_are_in_order_in_every_tensor() -> None:
    joined = Conditioning.stack([of_text(1, 3), of_text(2, 5), of_text(1, 0)])
    assert len(joined) == 4
    assert joined["hidden_states"].shape == (4, 7, 4)
    for name in ("hidden_states", "pooled", "size_ids"):
        assert joined[name].flatten(1)[:, 0].tolist() == [3, 5, 6, 0]


@pytest.mark.parametrize("index", [torch.tensor([2, 0, 2]), slice(1, 3)], ids=["by index", "by slice"])
def test_selected_images_keep_all_their_tensors(index: torch.Tensor | slice) -> None:
    chosen = of_text(4).select(index)
    expected = torch.arange(4)[index].tolist()
    assert len(chosen) == len(expected)
    for name in ("hidden_states", "pooled", "size_ids"):
        assert chosen[name].flatten(1)[:, 0].tolist() == expected


def test_tensors_of_different_lengths_are_no_conditioning() -> None:
    with pytest.raises(AssertionError):
        Conditioning({"pooled": torch.zeros(2, 5), "size_ids": torch.zeros(3, 6)})


def test_the_unconditional_request_has_no_label() -> None:
    assert ConditioningRequest(label=3).unconditional() == ConditioningRequest(label=None, is_negative=True)


def test_the_unconditional_request_has_the_negative_prompt_and_all_layers() -> None:
    request = ConditioningRequest(prompt="a goat", negative_prompt="a sheep", width=32, clip_skip=1, emphasis=True)
    expected = ConditioningRequest(prompt="a sheep", width=32, emphasis=True, is_negative=True)
    assert request.unconditional() == expected
