"""Embeddings of the noise level and the class: the vector that every block receives.

Sources: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, for sinusoids; Tancik et al. 2020
(arXiv:2006.10739) and Song et al. 2021 (arXiv:2011.13456) for random Fourier features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.networks.unet.unet_config import UNetConfig

FOURIER_SCALE = 16  # standard deviation of the random frequencies, fixed in diffusers


class TimestepEmbedding(nn.Module):
    """An MLP on the features of t, or on those of a label that is a number: (B, channels) → (B, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(features)))


class SinusoidalFeatures(nn.Module):
    """`sinusoidal_features` with the settings of a config; it has no weights."""

    def __init__(self, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.channels = channels
        self.flip_sin_to_cos = flip_sin_to_cos
        self.freq_shift = freq_shift

    def forward(self, t: Tensor) -> Tensor:
        return sinusoidal_features(t, self.channels, self.flip_sin_to_cos, self.freq_shift)


class FourierFeatures(nn.Module):
    """sin‖cos of 2π·log(t)·w at random frequencies w: (B,) → (B, 2·channels) float32.

    t is the noise level σ itself, over 0; its logarithm is taken here. w is drawn once and never
    trained, so it belongs to the checkpoint.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels) * FOURIER_SCALE, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float().log()[:, None] * self.weight[None, :] * 2 * math.pi  # (B, channels)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Embedding(nn.Embedding):
    """`nn.Embedding` that draws no weights on the meta device, for which torch would import its compiler (a second)."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class LearnedTimesteps(Embedding):
    """One vector for each of T timesteps; a time between two of them takes the nearer one's."""

    def forward(self, t: Tensor) -> Tensor:
        # Samplers ask for times between two timesteps; half goes to the even one.
        return super().forward(t.round().long())


def build_time_features(config: UNetConfig) -> tuple[nn.Module, int]:
    """The module that makes features of t, and how many features it makes."""
    channels = config.block_out_channels[0]
    if config.time_embedding_type == "fourier":
        return FourierFeatures(channels), 2 * channels
    if config.time_embedding_type == "learned":
        assert config.num_train_timesteps is not None
        return LearnedTimesteps(config.num_train_timesteps, channels), channels
    return SinusoidalFeatures(channels, config.flip_sin_to_cos, config.freq_shift), channels


def build_class_embedding(config: UNetConfig, features: int, width: int) -> nn.Module | None:
    """The module that embeds a label: an index, a number ("timestep") or the embedding itself ("identity").

    features: of t, whose features a label that is a number shares. None for a network without classes.
    """
    if config.class_embed_type == "timestep":
        return TimestepEmbedding(features, width)
    if config.class_embed_type == "identity":
        return nn.Identity()
    return Embedding(config.num_class_embeds, width) if config.num_class_embeds is not None else None


def sinusoidal_features(t: Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal features of the noise level t (Vaswani et al. 2017, section 3.5).

    t: (B,) in units of training timesteps, integers or not. Returns (B, channels) float32: sin‖cos, or
    cos‖sin with `flip_sin_to_cos`. Ho et al. have sin‖cos and freq_shift 1, OpenAI's code has cos‖sin and 0.
    """
    half = channels // 2
    # Frequencies 10000^(−i/(half − shift)), i = 0 … half − 1.
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t[:, None].float() * exponent.exp()[None, :]  # (B, half)
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    features = torch.cat(parts, dim=-1)
    return F.pad(features, (0, channels % 2))  # an odd number of channels ends in a zero
