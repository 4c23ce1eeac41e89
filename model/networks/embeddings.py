"""What the U-Net is told of the noise level and the class, as vectors.

Sources: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5; Tancik et al. 2020
(arXiv:2006.10739); Song et al. 2021 (arXiv:2011.13456), appendix C.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.networks.config import UNetConfig


class TimestepEmbedding(nn.Module):
    """MLP on the features of t, or of a label that is a number."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(features)))


class Sinusoids(nn.Module):
    """`sinusoid` with the settings of a config; no weights."""

    def __init__(self, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.channels = channels
        self.flip_sin_to_cos = flip_sin_to_cos
        self.freq_shift = freq_shift

    def forward(self, t: Tensor) -> Tensor:
        return sinusoid(t, self.channels, self.flip_sin_to_cos, self.freq_shift)


class FourierFeatures(nn.Module):
    """sin‖cos of 2π·log(t)·w, at frequencies w drawn once and kept: (B,) → (B, 2·channels).

    t is the noise level σ itself, over 0; its logarithm is taken here.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels) * 16, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float().log()[:, None] * self.weight[None, :] * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class LearnedTimesteps(nn.Embedding):
    """A vector for each of T timesteps; between two of them, that of the nearer."""

    def forward(self, t: Tensor) -> Tensor:
        return super().forward(t.round().long())


def time_features(config: UNetConfig) -> tuple[nn.Module, int]:
    """What makes features of t, and how many it makes."""
    channels = config.block_out_channels[0]
    if config.time_embedding_type == "fourier":
        return FourierFeatures(channels), 2 * channels
    if config.time_embedding_type == "learned":
        assert config.num_train_timesteps is not None
        return LearnedTimesteps(config.num_train_timesteps, channels), channels
    return Sinusoids(channels, config.flip_sin_to_cos, config.freq_shift), channels


def class_embedding(config: UNetConfig, features: int, width: int) -> nn.Module | None:
    """What makes an embedding of a label: an index, a number ("timestep") or the embedding itself ("identity")."""
    if config.class_embed_type == "timestep":
        return TimestepEmbedding(features, width)
    if config.class_embed_type == "identity":
        return nn.Identity()
    return nn.Embedding(config.num_class_embeds, width) if config.num_class_embeds is not None else None


def sinusoid(t: Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal features of the noise level t.

    t: (B,) in units of training timesteps, integers or not. Returns (B, channels) float32,
    sin‖cos, or cos‖sin with `flip_sin_to_cos`. Vaswani et al. 2017, section 3.5.
    """
    half = channels // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t[:, None].float() * exponent.exp()[None, :]  # (B, half)
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    features = torch.cat(parts, dim=-1)
    return F.pad(features, (0, channels % 2))
