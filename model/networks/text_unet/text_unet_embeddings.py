"""The embeddings of a text-conditioned U-Net: of t and the guidance scale, of a label, of SDXL's added vector.

Sources: Podell et al. 2023 (arXiv:2307.01952), section 2; Luo et al. 2023 (arXiv:2310.04378), section 4.3, for the
guidance scale as an input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.networks.unet.embeddings import Embedding, SinusoidalFeatures, TimestepEmbedding
from denoised.model.networks.unet.unet_layers import ACTIVATIONS


class GuidedTimestepEmbedding(nn.Module):
    """An MLP on the features of t plus, in a distilled network, a projection of those of the guidance scale.

    guidance_dim: features of the guidance scale; None for a network that does not take one.
    """

    def __init__(self, channels: int, width: int, *, activation: str = "silu", guidance_dim: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.act = ACTIVATIONS[activation]()
        self.linear_2 = nn.Linear(width, width)
        self.cond_proj = nn.Linear(guidance_dim, channels, bias=False) if guidance_dim is not None else None

    def forward(self, features: Tensor, guidance: Tensor | None = None) -> Tensor:
        """features: (B, channels); guidance: (B, guidance_dim). Returns (B, width)."""
        if guidance is not None:
            assert self.cond_proj is not None, "this network takes no guidance scale"
            features = features + self.cond_proj(guidance)
        return self.linear_2(self.act(self.linear_1(features)))


def guidance_features(scale: Tensor, channels: int) -> Tensor:
    """Sinusoidal features (B, channels) float32 of guidance scales (B,).

    The scale s of ε̂ = ε̂_empty + s·(ε̂_text − ε̂_empty) enters as w = s − 1, in thousandths.
    """
    half = channels // 2
    # Frequencies 10000^(−i/(half − 1)), i = 0 … half − 1. The angles reach thousands, so the operations are those of
    # diffusers in their order: another rounding of a frequency changes the third digit of a sine.
    step = torch.tensor(10000.0, device=scale.device).log() / (half - 1)
    frequencies = (torch.arange(half, dtype=torch.float32, device=scale.device) * -step).exp()
    angles = ((scale.float() - 1.0) * 1000.0)[:, None] * frequencies[None, :]  # (B, half)
    features = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return F.pad(features, (0, channels % 2))  # an odd number of channels ends in a zero


def build_label_embedding(config: TextUNetConfig, width: int) -> nn.Module | None:
    """The module that embeds a label: an index, a number ("timestep") or a vector ("projection"); None without."""
    if config.class_embed_type == "timestep":
        return GuidedTimestepEmbedding(config.block_out_channels[0], width, activation=config.act_fn)
    if config.class_embed_type == "projection":
        assert config.projection_class_embeddings_input_dim is not None
        return TimestepEmbedding(config.projection_class_embeddings_input_dim, width)
    return Embedding(config.num_class_embeds, width) if config.num_class_embeds is not None else None


def build_added_embedding(
    config: TextUNetConfig, width: int
) -> tuple[SinusoidalFeatures | None, TimestepEmbedding | None]:
    """The features of a size id and the MLP on pooled text and those features; (None, None) without them."""
    if config.addition_embed_type is None:
        return None, None
    assert config.addition_time_embed_dim is not None
    assert config.projection_class_embeddings_input_dim is not None
    features = SinusoidalFeatures(config.addition_time_embed_dim, config.flip_sin_to_cos, config.freq_shift)
    return features, TimestepEmbedding(config.projection_class_embeddings_input_dim, width)
