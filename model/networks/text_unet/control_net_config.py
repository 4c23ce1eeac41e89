"""The settings of a ControlNet: the keys of `config.json`, checked.

Keys and defaults equal those of diffusers 0.42's `ControlNetModel`. No key is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.config_checks import (
    MAX_LEVELS,
    ValueCheck,
    check_values,
    is_boolean,
    is_integers,
    to_lists,
    to_tuples,
)
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

CHECKS = (
    ValueCheck(("conditioning_embedding_out_channels",), f"not a list of at most {MAX_LEVELS} numbers", is_integers),
    ValueCheck(("global_pool_conditions",), "neither true nor false", is_boolean),
)
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "conditioning_channels": (1, 3),  # gray and RGB
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
}
# Keys of a U-Net that a ControlNet does not have.
FOREIGN = ("out_channels", "up_block_types", "sample_size", "time_cond_proj_dim", "time_embedding_dim")


@dataclass(frozen=True)
class ControlNetConfig:
    """The keys of `config.json`, with diffusers' defaults for those left out.

    Attributes:
        unet: The settings of the way down and the middle, as the U-Net has them.
        conditioning_channels: Channels of the control picture.
        controlnet_conditioning_channel_order: "rgb", or "bgr" for networks that read blue first.
        conditioning_embedding_out_channels: Channels of the layers that bring the picture to the size of the latents;
            each but the last halves height and width.
        global_pool_conditions: Whether each residual is the mean over its pixels.
    """

    unet: TextUNetConfig
    conditioning_channels: int = 3
    controlnet_conditioning_channel_order: str = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    global_pool_conditions: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ControlNetConfig:
        """The config of a parsed `config.json`; keys that begin with an underscore are left out.

        Raises:
            CheckpointError: for a key or a value that is not understood, by name.
        """
        names = {field.name for field in fields(cls)} - {"unet"}
        own = {name: to_tuples(value) for name, value in raw.items() if name in names}
        shared = {name: value for name, value in raw.items() if name not in names}
        for name in FOREIGN:
            if name in shared:
                raise CheckpointError(f"{name} = {abbreviate(shared[name])} is not a key of a ControlNet")
        types = shared.get("down_block_types", TextUNetConfig.down_block_types)
        if isinstance(types, list | tuple):
            # The way up of the U-Net that it belongs to, which the checks of levels need.
            up = ["CrossAttnUpBlock2D" if kind == "CrossAttnDownBlock2D" else "UpBlock2D" for kind in reversed(types)]
            shared["up_block_types"] = up
        config = cls(TextUNetConfig.from_dict(shared), **own)
        check_values(config, CHECKS, SUPPORTED)
        if config.unet.mid_block_type is None or not isinstance(config.unet.layers_per_block, int):
            name = "mid_block_type" if config.unet.mid_block_type is None else "layers_per_block"
            value = abbreviate(to_lists(getattr(config.unet, name)))
            raise CheckpointError(f"{name} = {value} is not supported in a ControlNet")
        return config

    @property
    def downscale(self) -> int:
        """Pixels of the control picture along each side for one latent."""
        return int(2 ** (len(self.conditioning_embedding_out_channels) - 1))
