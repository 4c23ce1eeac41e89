"""The tensor names of low-rank adapters, in the dialects that are in use.

| dialect | name of the down tensor |
|---|---|
| peft | `unet.down_blocks.0.…attn1.to_q.lora_A.weight` |
| diffusers | `unet.down_blocks.0.…attn1.to_q.lora.down.weight` |
| diffusers, before 0.19 | `unet.down_blocks.0.…attn1.processor.to_q_lora.down.weight` |
| kohya | `lora_unet_down_blocks_0_…attn1_to_q.lora_down.weight`, with `….alpha` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from denoised.model.errors import CheckpointError, abbreviate

LoraPart = Literal["down", "up", "alpha"]

# Endings of a tensor's name. What stands before is the module.
ENDINGS: tuple[tuple[str, LoraPart], ...] = (
    (r"\.lora_A(?:\.default)?\.weight", "down"),
    (r"\.lora_B(?:\.default)?\.weight", "up"),
    (r"\.lora_linear_layer\.down\.weight", "down"),
    (r"\.lora_linear_layer\.up\.weight", "up"),
    (r"[._]lora\.down\.weight", "down"),
    (r"[._]lora\.up\.weight", "up"),
    (r"\.lora_down\.weight", "down"),
    (r"\.lora_up\.weight", "up"),
    (r"\.alpha", "alpha"),
)
KOHYA_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
# Names in diffusers' old dialect, after the ending is gone: a pattern and the module's current name.
OLD_MODULES = (
    (r"\.processor\.", "."),
    (r"\.to_out$", ".to_out.0"),
    (r"\.self_attn\.to_([qkv])$", r".self_attn.\1_proj"),
    (r"\.self_attn\.to_out\.0$", ".self_attn.out_proj"),
)
# Adapters of other kinds, by a part of their names.
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "lora_mid": "Tucker decomposition",
}


def parse_lora_name(name: str, modules: Mapping[str, Mapping[str, str]]) -> tuple[str, str, LoraPart]:
    """(component, module, part) of a tensor's name in any dialect.

    modules: for each component, every name of a module → the module. The names with underscores for dots, which
        kohya's trainer writes, are among them.

    Raises:
        CheckpointError: for an adapter of another kind, and for a name that is not a tensor's or a module's.
    """
    for piece, kind in OTHER_KINDS.items():
        if piece in name:
            raise CheckpointError(
                f"tensor {abbreviate(name)} belongs to an adapter of another kind ({kind}); LoRA is supported"
            )
    for ending, part in ENDINGS:
        if match := re.search(f"{ending}$", name):
            component, module = _find_module(name[: match.start()], modules)
            if module is None:
                raise CheckpointError(
                    f"tensor {abbreviate(name)} is for a module that this model's {component} does not have"
                )
            return component, module, part
    raise CheckpointError(f"tensor {abbreviate(name)} is not that of a low-rank adapter")


def _find_module(path: str, modules: Mapping[str, Mapping[str, str]]) -> tuple[str, str | None]:
    """The component and module that a path names; None for an unknown module."""
    for prefix, component in KOHYA_PREFIXES.items():
        if path.startswith(prefix):
            return component, modules.get(component, {}).get(path.removeprefix(prefix))
    path = path.removeprefix("base_model.model.")
    first, _, rest = path.partition(".")
    # Files of one component have no prefix for it.
    component, module = (first, rest) if first in ("unet", "text_encoder", "text_encoder_2") else ("unet", path)
    for old, new in OLD_MODULES:
        module = re.sub(old, new, module)
    own = modules.get(component, {})
    # transformers 5 has no prefix `text_model.` in the first encoder.
    return component, own.get(module) or own.get(f"text_model.{module}")
