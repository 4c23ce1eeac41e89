"""The blocks of NCSN++, with the tensor names of diffusers.

Beside h they carry a small picture: on the way down the input, halved through a filter and
added to h at each level; on the way up what each level makes of its h, doubled and summed.
Source: Song et al. 2021 (arXiv:2011.13456), appendix H ("residual" and "output skip").
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from denoised.model.networks.blocks import joined
from denoised.model.networks.config import UNetConfig
from denoised.model.networks.parts import Attention, ResnetBlock, fir_down, fir_up, group_norm

SCALE = math.sqrt(2.0)  # (x + h)/√2 keeps the variance
PICTURE_CHANNELS = 3  # diffusers has them fixed
ATTENTION_GROUPS = 32  # likewise


class SkipDownBlock(nn.Module):
    """`layers` residual blocks (each followed by attention, if any), halved, plus the halved picture."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, width: int, *, attend: bool, last: bool) -> None:
        super().__init__()
        layers = config.layers_per_block
        self.resnets = nn.ModuleList(
            _resnet(inputs if j == 0 else outputs, outputs, config, width) for j in range(layers)
        )
        self.attentions = _attentions(outputs, config, layers if attend else 0)
        self.resnet_down = None if last else _resampler(outputs, config, width, "down_fir")
        self.skip_conv = None if last else nn.Conv2d(PICTURE_CHANNELS, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor, picture: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns what is kept for the way up, the block's output last, and the picture at its size."""
        kept = []
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions is not None:
                x = self.attentions[j](x)
            kept.append(x)
        if self.resnet_down is not None and self.skip_conv is not None:
            picture = fir_down(picture)
            kept.append(self.skip_conv(picture) + self.resnet_down(x, emb))
        return kept, picture


class SkipUpBlock(nn.Module):
    """`layers` + 1 residual blocks, attention (if any), what they add to the picture, and doubled."""

    def __init__(
        self, inputs: int, previous: int, outputs: int, config: UNetConfig, width: int, *, attend: bool, last: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _resnet(own + kept, outputs, config, width, _joined_groups(own, kept, attend))
            for own, kept in joined(inputs, previous, outputs, config.layers_per_block + 1)
        )
        self.attentions = _attentions(outputs, config, 1 if attend else 0)
        self.resnet_up = None if last else _resampler(outputs, config, width, "up_fir")
        self.skip_norm = None if last else group_norm(_groups(outputs), outputs, config.norm_eps)
        self.act = nn.SiLU()
        self.skip_conv = None if last else nn.Conv2d(outputs, PICTURE_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, picture: Tensor | None) -> tuple[Tensor, Tensor]:
        """picture: what the levels below made, at half the size; None at the lowest. Returns x and it, both larger."""
        for resnet in self.resnets:
            x = resnet(x, emb, skips.pop())
        if self.attentions is not None:
            x = self.attentions[0](x)
        grown = x.new_zeros(()) if picture is None else fir_up(picture)
        if self.resnet_up is not None and self.skip_norm is not None and self.skip_conv is not None:
            grown = grown + self.skip_conv(self.act(self.skip_norm(x)))
            x = self.resnet_up(x, emb)
        return x, grown


def _groups(channels: int) -> int:
    return min(channels // 4, 32)


def _joined_groups(own: int, kept: int, attend: bool) -> int:
    """Groups of the first norm on the way up; diffusers divides only the kept part where the block attends."""
    return min(own + kept // 4, 32) if attend else _groups(own + kept)


def _resnet(inputs: int, outputs: int, config: UNetConfig, width: int, groups: int | None = None) -> ResnetBlock:
    both = (groups if groups is not None else _groups(inputs), _groups(outputs))
    return ResnetBlock(inputs, outputs, config, width, groups=both, output_scale=SCALE)


def _resampler(channels: int, config: UNetConfig, width: int, resample: str) -> ResnetBlock:
    groups = (_groups(channels), _groups(channels))
    return ResnetBlock(
        channels, channels, config, width, groups=groups, output_scale=SCALE, resample=resample, shortcut=True
    )


def _attentions(channels: int, config: UNetConfig, count: int) -> nn.ModuleList | None:
    if not count:
        return None
    return nn.ModuleList(Attention(channels, config, ATTENTION_GROUPS, SCALE) for _ in range(count))
