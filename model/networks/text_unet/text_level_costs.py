"""What each level of a text-conditioned U-Net costs (`model.networks.unet.level_costs`)."""

from __future__ import annotations

import torch

from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import SIZE_IDS
from denoised.model.networks.unet.level_costs import LevelCost, count_levels

TOKENS = 77  # of a prompt in one chunk


def text_level_costs(unet: TextUNet, height: int, width: int) -> list[LevelCost]:
    """The levels from the highest resolution to the lowest, for one image of height × width latents and a prompt of one
    chunk, without guidance. Empty for a network with class labels."""
    config = unet.config
    if unet.class_embedding is not None:
        return []

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(1, *shape)

    text = config.cross_attention_dim
    context = zeros(TOKENS, text if isinstance(text, int) else text[0])
    sizes = {"pooled": zeros(config.pooled_dim), "size_ids": zeros(SIZE_IDS), "guidance": zeros()}
    named = {name: sizes[name] for name in config.added_inputs}
    x = zeros(config.in_channels, height, width)
    return count_levels(unet, config.block_out_channels, config.downscale, (x, torch.ones(1), context), named)
