"""The transformers of a text-conditioned U-Net, with diffusers' tensor names.

Sources: Rombach et al. 2022 (arXiv:2112.10752), section 3.3; Vaswani et al. 2017 (arXiv:1706.03762) for attention;
Shazeer 2020 (arXiv:2002.05202) for the gated feed-forward layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from denoised.model.errors import CheckpointError
from denoised.model.networks.text_unet.transformer_config import TransformerConfig
from denoised.model.networks.unet.unet_layers import DotProductAttention

# diffusers fixes it, whatever the config's norm_eps.
TRANSFORMER_NORM_EPS = 1e-6


class TokenAttention(nn.Module):
    """Multi-head attention of tokens to themselves, or to the text's hidden states.

    width: channels of the tokens, a multiple of `heads`.
    heads: attention heads.
    source_dim: channels of the sequence that keys and values are made from.
    upcast: compute softmax(q·kᵀ/√D)·v in float32 whatever the precision of the weights.
    """

    def __init__(self, width: int, heads: int, source_dim: int, *, upcast: bool) -> None:
        super().__init__()
        self.heads = heads
        self.upcast = upcast
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source_dim, width, bias=False)
        self.to_v = nn.Linear(source_dim, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.attend = DotProductAttention()

    def forward(self, tokens: Tensor, source: Tensor) -> Tensor:
        """tokens: (B, N, width); source: (B, M, source_dim). Returns (B, N, width)."""
        # q: (B, heads, N, D); k, v: (B, heads, M, D).
        q, k, v = self._split(self.to_q(tokens)), self._split(self.to_k(source)), self._split(self.to_v(source))
        dtype = q.dtype
        if self.upcast:
            # In float16 a product q·kᵀ can exceed 65,504, its largest number (Stable Diffusion 2).
            q, k, v = q.float(), k.float(), v.float()
        mixed = self.attend(q, k, v).to(dtype)  # (B, heads, N, D)
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, N, heads·D) → (B, heads, N, D)."""
        batch, count, width = tokens.shape
        return tokens.view(batch, count, self.heads, width // self.heads).transpose(1, 2)


class GatedLinear(nn.Module):
    """GEGLU(x) = (x·W + b) ⊙ GELU(x·V + c) (Shazeer 2020, equation 6); W and V are one matrix."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)
        self.gelu = nn.GELU()

    def forward(self, tokens: Tensor) -> Tensor:
        value, gate = self.proj(tokens).chunk(2, dim=-1)  # each (B, N, inner)
        return value * self.gelu(gate)


class FeedForward(nn.Module):
    """A gated layer four times as wide as its input, then a linear one: (B, N, width) → (B, N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The middle module is diffusers' dropout: the last linear layer is `net.2` in a checkpoint.
        self.net = nn.ModuleList([GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.net:
            tokens = layer(tokens)
        return tokens


class TransformerLayer(nn.Module):
    """Self-attention, attention to the text, feed-forward; each after a norm, and added to its input."""

    def __init__(self, width: int, config: TransformerConfig) -> None:
        super().__init__()
        self.only_cross_attention = config.only_cross_attention
        own_source = config.context_dim if config.only_cross_attention else width
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = TokenAttention(width, config.heads, own_source, upcast=config.upcast)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = TokenAttention(width, config.heads, config.context_dim, upcast=config.upcast)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """tokens: (B, H·W, width); context: (B, M, context_dim). Returns (B, H·W, width)."""
        normed = self.norm1(tokens)
        # x + f(norm(x)), three times: pre-norm, as in GPT-2.
        tokens = tokens + self.attn1(normed, context if self.only_cross_attention else normed)
        tokens = tokens + self.attn2(self.norm2(tokens), context)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """A transformer over the pixels of a feature map, added to the map (Rombach et al. 2022, section 3.3).

    layers: transformer layers; with none, only the projections remain.

    Raises:
        CheckpointError: if the groups do not divide the channels, or a head has no channel.
    """

    def __init__(self, config: TransformerConfig, layers: int) -> None:
        super().__init__()
        channels = config.channels
        if channels % config.groups or config.heads > channels:
            raise CheckpointError(
                f"{channels} channels do not divide into {config.groups} norm groups and {config.heads} heads"
            )
        # As in diffusers, the transformer consists of whole heads: `width` may be below `channels`.
        width = config.heads * (channels // config.heads)
        self.linear_projection = config.linear_projection
        self.norm = nn.GroupNorm(config.groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = _projection(channels, width, linear=config.linear_projection)
        self.transformer_blocks = nn.ModuleList(TransformerLayer(width, config) for _ in range(layers))
        self.proj_out = _projection(width, channels, linear=config.linear_projection)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, H, W); context: (B, M, context_dim). Returns (B, C, H, W)."""
        height, width = x.shape[-2:]
        # (B, C, H, W). Linear projections see tokens, convolutions the map; both are the same product for each pixel.
        h = self.norm(x)
        tokens = self.proj_in(_to_tokens(h)) if self.linear_projection else _to_tokens(self.proj_in(h))
        for layer in self.transformer_blocks:
            tokens = layer(tokens, context)  # (B, H·W, width)
        if self.linear_projection:
            return x + _to_map(self.proj_out(tokens), height, width)
        return x + self.proj_out(_to_map(tokens, height, width))


def _projection(in_channels: int, out_channels: int, *, linear: bool) -> nn.Module:
    return nn.Linear(in_channels, out_channels) if linear else nn.Conv2d(in_channels, out_channels, 1)


def _to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W, C)."""
    return x.flatten(2).transpose(1, 2)


def _to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, H·W, C) → (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, torch.Size((height, width)))
