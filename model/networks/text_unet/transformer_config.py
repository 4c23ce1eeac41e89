"""The settings of the transformers of a text-conditioned U-Net."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransformerConfig:
    """The settings of the transformers of one block.

    Attributes:
        channels: of the block's feature map.
        heads: attention heads; each has channels // heads channels.
        context_dim: channels of the text's hidden states.
        groups: of the norm before the transformer.
        linear_projection: project by linear layers instead of 1×1 convolutions.
        only_cross_attention: the first attention of each layer reads the text too.
        upcast: compute attention in float32 whatever the precision of the weights.
    """

    channels: int
    heads: int
    context_dim: int
    groups: int
    linear_projection: bool
    only_cross_attention: bool
    upcast: bool
