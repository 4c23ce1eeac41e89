"""A ControlNet of the Stable Diffusion family, with the names of diffusers' `ControlNetModel`.

Config keys (`control_net_config`) and tensor names equal those of diffusers 0.42, so that a folder written by either
loads in the other. It knows nothing of files, samplers or the U-Net that it belongs to.
Source: Zhang et al. 2023 (arXiv:2302.05543), section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from denoised.model.networks.text_unet.contracting_path import ContractingPath
from denoised.model.networks.text_unet.control_net_config import ControlNetConfig

GUESS_MODE_RANGE = (-1.0, 0.0)  # log10 of the residuals' scales, from the highest resolution to the middle


class ControlEmbedding(nn.Module):
    """The network E of section 3.2: a picture (B, C, H, W) in 0 … 1 → features (B, width, H/f, W/f).

    widths: channels of its layers; each but the last halves height and width.
    """

    def __init__(self, channels: int, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.act = nn.SiLU()
        self.blocks = nn.ModuleList()
        for own, following in itertools.pairwise(widths):
            self.blocks.append(nn.Conv2d(own, own, 3, padding=1))
            self.blocks.append(nn.Conv2d(own, following, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], width, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        h = self.act(self.conv_in(picture))
        for block in self.blocks:
            h = self.act(block(h))
        return self.conv_out(h)


class ControlNet(ContractingPath):
    """(x_t, t, text, picture) → what is added to the skip tensors of a U-Net, and to its middle.

    Raises:
        CheckpointError: for a config whose blocks cannot be built, naming channels and groups.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config.unet)
        self.control = config
        channels, layers = config.unet.block_out_channels, config.unet.layers(0)
        self.controlnet_cond_embedding = ControlEmbedding(
            config.conditioning_channels, config.conditioning_embedding_out_channels, channels[0]
        )
        # The zero convolutions Z(·; Θ_z2) of equation (2), 1×1 and zero before training: one for the output of conv_in,
        # one for each layer of each block, and one for its downsampler.
        widths = [channels[0], *(width for width in channels for _ in range(layers + 1))][:-1]
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.controlnet_mid_block = nn.Conv2d(channels[-1], channels[-1], 1)

    def hint(self, picture: Tensor) -> Tensor:
        """The features (B, block_out_channels[0], h, w) of a control picture (B, C, H, W) in 0 … 1.

        They do not depend on the noise level.
        """
        if self.control.controlnet_conditioning_channel_order == "bgr":  # trained on pictures that OpenCV read
            picture = picture.flip(1)
        features: Tensor = self.controlnet_cond_embedding(picture)
        return features

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        hint: Tensor,
        *,
        pooled: Tensor | None = None,
        size_ids: Tensor | None = None,
    ) -> list[Tensor]:
        """One tensor for each skip tensor of the U-Net, and one for its middle; means over all pixels, (B, C, 1, 1),
        with `global_pool_conditions`.

        x: (B, in_channels, h, w); hint: (B, block_out_channels[0], h, w); the others as in `TextUNet.forward`.
        """
        emb = self.embed(t, x.dtype, pooled=pooled, size_ids=size_ids)
        # Equation (2): the trainable copy F(·; Θ_c) of the way down gets x + Z(c; Θ_z1), where the hint is Z(c; Θ_z1).
        skips = self.descend(self.conv_in(x) + hint, emb, context)  # each (B, width, h/2^k, w/2^k)
        middle = self.turn(skips[-1], emb, context)  # (B, channels[−1], h/f, w/f)
        outputs = [layer(skip) for layer, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        outputs.append(self.controlnet_mid_block(middle))
        if self.control.global_pool_conditions:
            return [_pooled(each) for each in outputs]
        return outputs


def _pooled(x: Tensor) -> Tensor:
    """(B, C, h, w) → (B, C, 1, 1). One image at a time: the order of a sum may depend on the batch."""
    return torch.cat([image.mean(dim=(2, 3), keepdim=True) for image in x.split(1)])


def guess_mode_scales(count: int) -> list[float]:
    """The scales of a network's residuals in guess mode: 0.1 at the highest resolution to 1 in the middle.

    Source: `guess_mode` of the authors' code, and diffusers' `ControlNetModel.forward`.
    """
    low, high = GUESS_MODE_RANGE
    return torch.logspace(low, high, count).tolist()
