"""The blocks of the U-Net, with the tensor names of diffusers' blocks.

`model.networks.parts` has what they are made of, `model.networks.skip_blocks` the ones of NCSN++.
Source: Ho et al. 2020 (arXiv:2006.11239), appendix B.
"""

from __future__ import annotations

from torch import Tensor, nn

from denoised.model.networks.config import UNetConfig
from denoised.model.networks.parts import Attention, Downsample, ResnetBlock, Upsample


class DownBlock(nn.Module):
    """`layers` residual blocks (each followed by attention, if any), then a downsampler."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: UNetConfig,
        width: int,
        *,
        attend: bool,
        last: bool,
        resample: str = "conv",
    ) -> None:
        super().__init__()
        layers = config.layers_per_block
        self.resnets = nn.ModuleList(
            ResnetBlock(inputs if j == 0 else outputs, outputs, config, width) for j in range(layers)
        )
        self.attentions = attentions(outputs, config, layers) if attend else None
        self.downsamplers = None
        if not last and resample == "conv":
            self.downsamplers = nn.ModuleList([Downsample(outputs, config.downsample_padding)])
        elif not last:
            self.downsamplers = nn.ModuleList([ResnetBlock(outputs, outputs, config, width, resample="down")])

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Returns what is kept for the way up; the last is the block's output."""
        kept = []
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions is not None:
                x = self.attentions[j](x)
            kept.append(x)
        if self.downsamplers is not None:
            kept.append(self.downsamplers[0](x, emb))
        return kept


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, config: UNetConfig, width: int) -> None:
        super().__init__()
        scale = config.mid_block_scale_factor
        norm = config.norm_groups(channels)
        # Without groups of its own the attention has a norm only where residual blocks have no scale and shift.
        groups = config.attn_norm_num_groups or (norm if config.resnet_time_scale_shift == "default" else None)
        self.attentions = nn.ModuleList([Attention(channels, config, groups, scale)]) if config.add_attention else None
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, config, width, groups=(norm, norm), output_scale=scale) for _ in range(2)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[0](x, emb)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x, emb)


class UpBlock(nn.Module):
    """`layers` + 1 residual blocks, each on the input joined with a kept tensor, then an upsampler."""

    def __init__(
        self,
        inputs: int,
        previous: int,
        outputs: int,
        config: UNetConfig,
        width: int,
        *,
        attend: bool,
        last: bool,
        resample: str = "conv",
    ) -> None:
        super().__init__()
        layers = config.layers_per_block + 1
        self.resnets = nn.ModuleList(
            ResnetBlock(own + kept, outputs, config, width) for own, kept in joined(inputs, previous, outputs, layers)
        )
        self.attentions = attentions(outputs, config, layers) if attend else None
        self.upsamplers = None
        if not last and resample == "conv":
            self.upsamplers = nn.ModuleList([Upsample(outputs)])
        elif not last:
            self.upsamplers = nn.ModuleList([ResnetBlock(outputs, outputs, config, width, resample="up")])

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, emb, skips.pop())
            if self.attentions is not None:
                x = self.attentions[j](x)
        return self.upsamplers[0](x, emb) if self.upsamplers is not None else x


def attentions(channels: int, config: UNetConfig, count: int) -> nn.ModuleList:
    """As many attentions as a block has residual blocks, with the norm groups of these."""
    return nn.ModuleList(Attention(channels, config, config.norm_groups(channels)) for _ in range(count))


def joined(inputs: int, previous: int, outputs: int, layers: int) -> list[tuple[int, int]]:
    """Channels of what each residual block on the way up joins: its own input, and what was kept."""
    return [(previous if j == 0 else outputs, inputs if j == layers - 1 else outputs) for j in range(layers)]
