"""Which base model an adapter was made for, recognized by the width of the text that its cross-attention reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

# Channels of the hidden states that the U-Net attends to.
BASES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "the refiner of XL", 2048: "Stable Diffusion XL"}
TEXT_PROJECTION = re.compile(r"attn2[._](processor\.)?to_[kv](?![a-z])")
DOWN = re.compile(r"lora_A|lora_down|lora\.down|lora_linear_layer\.down")


def wrong_base(tensors: Mapping[str, Tensor], shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str | None:
    """Why the adapter is for another base than the model's; None if its text is as wide, or it does not say.

    tensors: of the adapter's file. shapes: (module, shape of the weight) of the model's U-Net.
    """
    found = {
        tensor.shape[1]
        for name, tensor in tensors.items()
        if tensor.dim() >= 2 and TEXT_PROJECTION.search(name) and DOWN.search(name)
    }
    own = {shape[1] for module, shape in shapes if TEXT_PROJECTION.search(module)}
    if not own or not found or found & own:
        return None
    given, expected = min(found), min(own)
    return f"this adapter is for {_described(given)}; the model is {_described(expected, of='one')}"


def _described(width: int, of: str = "a model") -> str:
    """A base by its name, if it is a published one, and its width."""
    named = BASES.get(width)
    return f"{named} (text of {width} channels)" if named is not None else f"{of} whose text has {width} channels"
