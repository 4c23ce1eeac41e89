"""The blocks of the autoencoder, with diffusers' tensor names. None of them receives an embedding.

Source: Esser et al. 2021 (arXiv:2012.09841), appendix A.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.networks.unet.unet_layers import ACTIVATIONS, Attention, group_norm


class PlainResnetBlock(nn.Module):
    """norm → activation → conv, twice, plus the input: (B, in_channels, H, W) → (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        groups = config.norm_groups(out_channels)
        self.activation = ACTIVATIONS[config.act_fn]()
        self.norm1 = group_norm(groups, in_channels, config.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(groups, out_channels, config.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.activation(self.norm1(x)))  # (B, out_channels, H, W)
        h = self.conv2(self.activation(self.norm2(h)))
        # A 1×1 convolution brings the input to out_channels; without a change of channels it is added as it is.
        return h + (self.conv_shortcut(x) if self.conv_shortcut is not None else x)


class StridedConv(nn.Module):
    """Halve height and width; one column is padded right and one row below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)  # not padded: `forward` pads one side only

    def forward(self, x: Tensor) -> Tensor:
        # (left, right, top, bottom): TensorFlow's "SAME" padding of a strided convolution.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class UpsampledConv(nn.Module):
    """Double height and width by nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class EncoderDownBlock(nn.Module):
    """`layers` residual blocks, then a strided convolution unless the block is the last.

    (B, in_channels, H, W) → (B, out_channels, H/2, W/2), or H, W if `last`.
    """

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, *, layers: int, last: bool) -> None:
        super().__init__()
        self.resnets = build_plain_resnets(in_channels, out_channels, config, layers)
        # A list of one, or None: diffusers' tensor names have the index 0.
        self.downsamplers = nn.ModuleList([StridedConv(out_channels)]) if not last else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return self.downsamplers[0](x) if self.downsamplers is not None else x


class DecoderUpBlock(nn.Module):
    """`layers` residual blocks, then an upsampled convolution unless the block is the last.

    (B, in_channels, H, W) → (B, out_channels, 2H, 2W), or H, W if `last`.
    """

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, *, layers: int, last: bool) -> None:
        super().__init__()
        self.resnets = build_plain_resnets(in_channels, out_channels, config, layers)
        # A list of one, or None, as in `EncoderDownBlock`.
        self.upsamplers = nn.ModuleList([UpsampledConv(out_channels)]) if not last else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return self.upsamplers[0](x) if self.upsamplers is not None else x


class PlainMidBlock(nn.Module):
    """A residual block, attention with one head if the block attends, a residual block; the shape stays."""

    def __init__(self, channels: int, config: UNetConfig, *, attend: bool) -> None:
        super().__init__()
        self.resnets = build_plain_resnets(channels, channels, config, 2)
        attention = Attention(channels, config, config.norm_groups(channels)) if attend else None
        self.attentions = nn.ModuleList([attention]) if attention is not None else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x)


def build_plain_resnets(in_channels: int, out_channels: int, config: UNetConfig, layers: int) -> nn.ModuleList:
    """Residual blocks. The first one changes the number of channels."""
    return nn.ModuleList(
        PlainResnetBlock(in_channels if j == 0 else out_channels, out_channels, config) for j in range(layers)
    )
