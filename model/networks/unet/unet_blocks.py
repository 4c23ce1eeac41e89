"""The blocks of the U-Net, with diffusers' tensor names.

`model.networks.unet.unet_layers` has their layers, `model.networks.unet.skip_blocks` the blocks of NCSN++.
Source: Ho et al. 2020 (arXiv:2006.11239), appendix B.
"""

from __future__ import annotations

from torch import Tensor, nn

from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.networks.unet.unet_layers import Attention, Downsample, ResnetBlock, Upsample


class DownBlock(nn.Module):
    """`layers_per_block` residual blocks, each followed by attention if the block attends, then a downsampler.

    last: the block of the lowest resolution, which keeps its size.
    resample: "conv" (a strided convolution) or "resnet" (a residual block that halves).
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
        resample: str = "conv",
    ) -> None:
        super().__init__()
        layers = config.layers_per_block
        self.resnets = nn.ModuleList(
            ResnetBlock(in_channels if j == 0 else out_channels, out_channels, config, embed_dim) for j in range(layers)
        )
        self.attentions = build_attentions(out_channels, config, layers) if attend else None
        # A list of one, or None: diffusers' tensor names have the index 0.
        self.downsamplers = None
        if not last and resample == "conv":
            self.downsamplers = nn.ModuleList([Downsample(out_channels, config.downsample_padding)])
        elif not last:
            downsampler = ResnetBlock(out_channels, out_channels, config, embed_dim, resample="down")
            self.downsamplers = nn.ModuleList([downsampler])

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Return the skip tensors for the way up; the last one is the block's output.

        x: (B, in_channels, H, W); emb: (B, embed_dim).
        """
        skips = []
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions is not None:
                x = self.attentions[j](x)
            skips.append(x)  # (B, out_channels, H, W)
        if self.downsamplers is not None:
            skips.append(self.downsamplers[0](x, emb))  # (B, out_channels, H/2, W/2)
        return skips


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, config: UNetConfig, embed_dim: int) -> None:
        super().__init__()
        scale = config.mid_block_scale_factor
        norm = config.norm_groups(channels)
        # As in diffusers: without attn_norm_num_groups the attention has a norm only if the embedding is added,
        # and none with scale_shift.
        groups = config.attn_norm_num_groups or (norm if config.resnet_time_scale_shift == "default" else None)
        self.attentions = nn.ModuleList([Attention(channels, config, groups, scale)]) if config.add_attention else None
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, config, embed_dim, groups=(norm, norm), output_scale=scale)
            for _ in range(2)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[0](x, emb)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x, emb)


class UpBlock(nn.Module):
    """`layers_per_block` + 1 residual blocks, each on its input joined with a skip tensor, then an upsampler.

    skip_channels: out_channels of the level above, whose last skip tensor the last residual block takes.
    in_channels: of the block's input, from the level below.
    last: the block of the highest resolution, which keeps its size.
    resample: "conv" (nearest neighbor, then a convolution) or "resnet" (a residual block that doubles).
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
        resample: str = "conv",
    ) -> None:
        super().__init__()
        layers = config.layers_per_block + 1
        self.resnets = nn.ModuleList(
            ResnetBlock(own + skip, out_channels, config, embed_dim)
            for own, skip in joined_channels(skip_channels, in_channels, out_channels, layers)
        )
        self.attentions = build_attentions(out_channels, config, layers) if attend else None
        # A list of one, or None, as in `DownBlock`.
        self.upsamplers = None
        if not last and resample == "conv":
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])
        elif not last:
            upsampler = ResnetBlock(out_channels, out_channels, config, embed_dim, resample="up")
            self.upsamplers = nn.ModuleList([upsampler])

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """Evaluate the block; takes its skip tensors off the end of `skips`.

        x: (B, in_channels, H, W); emb: (B, embed_dim). Returns (B, out_channels, 2H, 2W), or H, W if `last`.
        """
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, emb, skips.pop())  # (B, out_channels, H, W)
            if self.attentions is not None:
                x = self.attentions[j](x)
        return self.upsamplers[0](x, emb) if self.upsamplers is not None else x


def build_attentions(channels: int, config: UNetConfig, count: int) -> nn.ModuleList:
    """One attention for each residual block, with the same norm groups."""
    return nn.ModuleList(Attention(channels, config, config.norm_groups(channels)) for _ in range(count))


def joined_channels(skip_channels: int, in_channels: int, out_channels: int, layers: int) -> list[tuple[int, int]]:
    """(own, skip) channels that each residual block on the way up joins.

    The first block's own input comes from the level below; the last block's skip tensor was the input of this
    level on the way down, so it has the channels of the level above.
    """
    return [
        (in_channels if j == 0 else out_channels, skip_channels if j == layers - 1 else out_channels)
        for j in range(layers)
    ]
