"""The blocks of NCSN++, with diffusers' tensor names.

Next to h they pass a small image along: on the way down the input, halved through a filter and added to h at
each level ("residual"); on the way up the output, to which each level adds its part, doubled for the next
("output skip"). Source: Song et al. 2021 (arXiv:2011.13456), appendix H.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from denoised.model.networks.unet.fir import fir_downsample, fir_upsample
from denoised.model.networks.unet.unet_blocks import joined_channels
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.networks.unet.unet_layers import Attention, ResnetBlock, group_norm

SCALE = math.sqrt(2.0)  # (x + h)/√2 keeps the variance
IMAGE_CHANNELS = 3  # fixed in diffusers
ATTENTION_GROUPS = 32  # fixed in diffusers


class SkipDownBlock(nn.Module):
    """`layers_per_block` residual blocks, each followed by attention if the block attends; then h and image halved.

    last: the block of the lowest resolution, which keeps its size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: UNetConfig,
        embed_dim: int,
        *,
        attend: bool,
        last: bool,
    ) -> None:
        super().__init__()
        layers = config.layers_per_block
        self.resnets = nn.ModuleList(
            _resnet(in_channels if j == 0 else out_channels, out_channels, config, embed_dim) for j in range(layers)
        )
        self.attentions = _attentions(out_channels, config, layers if attend else 0)
        self.resnet_down = None if last else _resampler(out_channels, config, embed_dim, "down_fir")
        self.skip_conv = None if last else nn.Conv2d(IMAGE_CHANNELS, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the skip tensors for the way up, the block's output last, and the image at the output's size.

        x: (B, in_channels, H, W); emb: (B, embed_dim); image: (B, 3, H, W), the network's input at this level.
        """
        skips = []
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions is not None:
                x = self.attentions[j](x)
            skips.append(x)
        if self.resnet_down is not None and self.skip_conv is not None:
            # (B, 3, H/2, W/2)
            image = fir_downsample(image)
            skips.append(self.skip_conv(image) + self.resnet_down(x, emb))  # (B, out_channels, H/2, W/2)
        return skips, image


class SkipUpBlock(nn.Module):
    """`layers_per_block` + 1 residual blocks, one attention if the block attends, and this level's part of the image.

    The channels are those of `UpBlock`; last: the block of the highest resolution, which keeps its size.
    """

    def __init__(
        self,
        skip_channels: int,
        in_channels: int,
        out_channels: int,
        config: UNetConfig,
        embed_dim: int,
        *,
        attend: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _resnet(own + skip, out_channels, config, embed_dim, _joined_groups(own, skip, attend))
            for own, skip in joined_channels(skip_channels, in_channels, out_channels, config.layers_per_block + 1)
        )
        # One attention after all residual blocks, not one after each, as in diffusers.
        self.attentions = _attentions(out_channels, config, 1 if attend else 0)
        self.resnet_up = None if last else _resampler(out_channels, config, embed_dim, "up_fir")
        self.skip_norm = None if last else group_norm(_groups(out_channels), out_channels, config.norm_eps)
        self.act = nn.SiLU()
        self.skip_conv = None if last else nn.Conv2d(out_channels, IMAGE_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return h, doubled unless the block is the last, and the image at the size of x.

        x: (B, in_channels, H, W); skips: as in `UpBlock`; image: (B, 3, H/2, W/2), the sum of the levels
        below, or None at the lowest level.
        """
        for resnet in self.resnets:
            # (B, out_channels, H, W)
            x = resnet(x, emb, skips.pop())
        if self.attentions is not None:
            x = self.attentions[0](x)
        doubled = x.new_zeros(()) if image is None else fir_upsample(image)  # (B, 3, H, W), or 0
        if self.resnet_up is not None and self.skip_norm is not None and self.skip_conv is not None:
            # (B, 3, H, W): what this level adds to the output.
            doubled = doubled + self.skip_conv(self.act(self.skip_norm(x)))
            x = self.resnet_up(x, emb)
        return x, doubled


def _groups(channels: int) -> int:
    return min(channels // 4, 32)


def _joined_groups(own: int, skip: int, attend: bool) -> int:
    """Groups of the first norm on the way up; where the block attends, diffusers divides only the skip channels."""
    return min(own + skip // 4, 32) if attend else _groups(own + skip)


def _resnet(
    in_channels: int, out_channels: int, config: UNetConfig, embed_dim: int, groups: int | None = None
) -> ResnetBlock:
    both = (groups if groups is not None else _groups(in_channels), _groups(out_channels))
    return ResnetBlock(in_channels, out_channels, config, embed_dim, groups=both, output_scale=SCALE)


def _resampler(channels: int, config: UNetConfig, embed_dim: int, resample: str) -> ResnetBlock:
    groups = (_groups(channels), _groups(channels))
    return ResnetBlock(
        channels, channels, config, embed_dim, groups=groups, output_scale=SCALE, resample=resample, shortcut=True
    )


def _attentions(channels: int, config: UNetConfig, count: int) -> nn.ModuleList | None:
    if not count:
        return None
    return nn.ModuleList(Attention(channels, config, ATTENTION_GROUPS, SCALE) for _ in range(count))
