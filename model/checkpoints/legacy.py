"""The names of config keys and tensors in diffusers' first releases, and their names in diffusers 0.42.

The public checkpoints of 2022 use the old names. diffusers' own list of renames is in its
`scripts/change_naming_configs_and_checkpoints.py` (modules, configs) and in
`ModelMixin._fix_state_dict_keys_on_load` (attention).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from denoised.model.errors import CheckpointError

CONFIG_KEYS = {
    "image_size": "sample_size",
    "num_res_blocks": "layers_per_block",
    "block_channels": "block_out_channels",
    "down_blocks": "down_block_types",
    "up_blocks": "up_block_types",
    "downscale_freq_shift": "freq_shift",
    "resnet_num_groups": "norm_num_groups",
    "resnet_act_fn": "act_fn",
    "resnet_eps": "norm_eps",
    "num_head_channels": "attention_head_dim",
}
# (old pattern, new name), applied to a tensor's name in this order.
TENSOR_NAMES = (
    (r"^time_steps\.", "time_proj."),
    (r"^mid\.", "mid_block."),
    (r"^downsample_blocks\.", "down_blocks."),
    (r"^upsample_blocks\.", "up_blocks."),
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    (r"(\.(?:down|up)samplers\.\d+)\.op\.", r"\1.conv."),
    (r"^time_proj\.W$", "time_proj.weight"),
)


def modernize_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the current keys and block names; old blocks have the prefix "UNetRes".

    Raises:
        CheckpointError: if a config has both the old and the new key, with different values.
    """
    values = {key: value for key, value in raw.items() if key not in CONFIG_KEYS}
    for old, new in CONFIG_KEYS.items():
        if old in raw and raw[old] != values.setdefault(new, raw[old]):
            raise CheckpointError(f"config key {old!r} is the old name of {new!r} and has another value")
    for key in ("down_block_types", "up_block_types"):
        if isinstance(values.get(key), list | tuple):
            values[key] = [_without_prefix(kind) for kind in values[key]]
    return values


def modernize_tensor_name(name: str) -> str:
    """The current name of a tensor."""
    for old, new in TENSOR_NAMES:
        name = re.sub(old, new, name)
    return name


def _without_prefix(kind: Any) -> Any:
    return kind.removeprefix("UNetRes") if isinstance(kind, str) else kind
