"""The blocks of a text-conditioned U-Net, with diffusers' tensor names.

A block without attention is `DownBlock` or `UpBlock` of the plain U-Net. The blocks here add a transformer
after each of their residual blocks.
Source: Rombach et al. 2022 (arXiv:2112.10752), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from denoised.model.networks.text_unet.transformer import SpatialTransformer
from denoised.model.networks.text_unet.transformer_config import TransformerConfig
from denoised.model.networks.unet.unet_blocks import DownBlock, UpBlock
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.networks.unet.unet_layers import ResnetBlock


class CrossAttentionDownBlock(DownBlock):
    """Residual blocks, each followed by a transformer, then a downsampler unless the block is the last.

    transformer, transformer_layers: settings of the transformers, and the layers of each.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: UNetConfig,
        embed_dim: int,
        *,
        transformer: TransformerConfig,
        transformer_layers: Sequence[int],
        last: bool,
    ) -> None:
        super().__init__(in_channels, out_channels, config, embed_dim, attend=False, last=last)
        self.attentions = build_transformers(transformer, transformer_layers)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> list[Tensor]:
        """Return the skip tensors for the way up; the last one is the block's output.

        x: (B, in_channels, H, W); emb: (B, embed_dim); context: (B, M, context_dim).
        """
        assert self.attentions is not None
        skips = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, emb), context)
            skips.append(x)  # (B, out_channels, H, W)
        if self.downsamplers is not None:
            skips.append(self.downsamplers[0](x, emb))  # (B, out_channels, H/2, W/2)
        return skips


class CrossAttentionUpBlock(UpBlock):
    """Residual blocks, each on its input joined with a skip tensor and followed by a transformer; an upsampler.

    The arguments are those of `UpBlock` and `CrossAttentionDownBlock`.
    """

    def __init__(
        self,
        skip_channels: int,
        in_channels: int,
        out_channels: int,
        config: UNetConfig,
        embed_dim: int,
        *,
        transformer: TransformerConfig,
        transformer_layers: Sequence[int],
        last: bool,
    ) -> None:
        super().__init__(skip_channels, in_channels, out_channels, config, embed_dim, attend=False, last=last)
        self.attentions = build_transformers(transformer, transformer_layers)

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor | None = None) -> Tensor:
        """Evaluate the block; takes its skip tensors off the end of `skips`.

        x: (B, in_channels, H, W); emb: (B, embed_dim); context: (B, M, context_dim).
        Returns (B, out_channels, 2H, 2W), or H, W if `last`.
        """
        assert self.attentions is not None
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            # The skip tensors come back in reverse order, joined along the channels.
            x = attention(resnet(x, emb, skips.pop()), context)  # (B, out_channels, H, W)
        return self.upsamplers[0](x, emb) if self.upsamplers is not None else x


class CrossAttentionMidBlock(nn.Module):
    """A residual block; then, with attention, a transformer and a second residual block.

    transformer: None for the middle block without attention, which has one residual block.
    scale: divides the sums of the residual blocks.
    """

    def __init__(
        self,
        channels: int,
        config: UNetConfig,
        embed_dim: int,
        *,
        transformer: TransformerConfig | None,
        transformer_layers: int,
        scale: float,
    ) -> None:
        super().__init__()
        count = 1 if transformer is None else 2
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, config, embed_dim, output_scale=scale) for _ in range(count)
        )
        layers = [transformer_layers]
        self.attentions = build_transformers(transformer, layers) if transformer is not None else None

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); emb: (B, embed_dim); context: (B, M, context_dim). Returns (B, C, H, W)."""
        x = self.resnets[0](x, emb)
        if self.attentions is not None:
            x = self.resnets[1](self.attentions[0](x, context), emb)
        return x


def build_transformers(transformer: TransformerConfig, layers: Sequence[int]) -> nn.ModuleList:
    """One transformer for each residual block, with the number of layers that each has."""
    return nn.ModuleList(SpatialTransformer(transformer, count) for count in layers)
