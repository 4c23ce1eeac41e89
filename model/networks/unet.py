"""The U-Net that predicts noise, with the names of diffusers' `UNet2DModel`.

Config keys (`model.networks.config`) and state-dict names equal those of diffusers 0.42, so that
folders written by either load in the other.

This module knows nothing of noise schedules, samplers or files.
Source: Ho et al. 2020 (arXiv:2006.11239) section 4; Ronneberger et al. 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from denoised.model.networks.blocks import DownBlock, MidBlock, UpBlock
from denoised.model.networks.config import UNetConfig
from denoised.model.networks.embeddings import TimestepEmbedding, class_embedding, time_features
from denoised.model.networks.parts import group_norm
from denoised.model.networks.skip_blocks import SkipDownBlock, SkipUpBlock


class UNet(nn.Module):
    """f_θ(x, t, label) → a tensor like x: noise, v or x_0, as the checkpoint's scheduler file says.

    Raises:
        CheckpointError: for a config whose blocks cannot be built, by channels and groups.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        width = config.time_embedding_dim or 4 * channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_proj, features = time_features(config)
        self.time_embedding = TimestepEmbedding(features, width)
        self.class_embedding = class_embedding(config, features, width)
        self.down_blocks = nn.ModuleList(_down_block(config, i, width) for i in range(len(channels)))
        self.mid_block = MidBlock(channels[-1], config, width) if config.mid_block_type is not None else None
        self.up_blocks = nn.ModuleList(_up_block(config, i, width) for i in range(len(channels)))
        self.conv_norm_out = group_norm(config.norm_groups(channels[0]), channels[0], config.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def embed(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What every block is told: (B, width) from t (B,) and label (B,), or (B, width) where that is an embedding."""
        emb: Tensor = self.time_embedding(self.time_proj(t).to(dtype))
        if self.class_embedding is None:
            assert label is None, "a label was given to a network without classes"
            return emb
        assert label is not None, "a class-conditional network needs a label for every image"
        if self.config.class_embed_type == "timestep":
            label = self.time_proj(label).to(dtype)
        return emb + self.class_embedding(label).to(dtype)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        x: (B, C, H, W), H and W multiples of `config.downscale`; t: (B,) noise levels in
        units of training timesteps (with Fourier features σ, over 0), one an image; label: (B,)
        class indices, the last of `num_class_embeds` meaning "no label". Returns (B, out_channels, H, W).
        """
        return self.evaluate(x, t, self.embed(t, label, x.dtype))

    def evaluate(self, x: Tensor, t: Tensor, emb: Tensor) -> Tensor:
        """`forward` with what every block is told, emb (B, width), made already."""
        if self.config.center_input_sample:
            x = 2 * x - 1.0
        h = self._up(self._down(x, emb), emb)
        if self.config.time_embedding_type == "fourier":  # the network's output is σ times a score
            h = h / t.to(h.dtype)[:, None, None, None]
        return h

    def _down(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """What is kept on the way down, the lowest last."""
        skips, picture = [self.conv_in(x)], x
        for block in self.down_blocks:
            if isinstance(block, SkipDownBlock):
                kept, picture = block(skips[-1], emb, picture)
                skips.extend(kept)
            else:
                skips.extend(block(skips[-1], emb))
        return skips

    def _up(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        """From the lowest level to the output."""
        h, picture = skips[-1], None
        if self.mid_block is not None:
            h = self.mid_block(h, emb)
        for block in self.up_blocks:
            if isinstance(block, SkipUpBlock):
                h, picture = block(h, skips, emb, picture)
            else:
                h = block(h, skips, emb)
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        return h + picture if picture is not None else h


def _down_block(config: UNetConfig, i: int, width: int) -> nn.Module:
    channels, kind = config.block_out_channels, config.down_block_types[i]
    inputs, outputs, last = channels[max(i - 1, 0)], channels[i], i == len(channels) - 1
    attend = kind.startswith("Attn")
    if "Skip" in kind:
        return SkipDownBlock(inputs, outputs, config, width, attend=attend, last=last)
    resample = _resampling(kind, config.downsample_type)
    return DownBlock(inputs, outputs, config, width, attend=attend, last=last, resample=resample)


def _up_block(config: UNetConfig, i: int, width: int) -> nn.Module:
    rising, kind = config.block_out_channels[::-1], config.up_block_types[i]
    last = i == len(rising) - 1
    inputs, previous, outputs = rising[min(i + 1, len(rising) - 1)], rising[max(i - 1, 0)], rising[i]
    attend = kind.startswith("Attn")
    if "Skip" in kind:
        return SkipUpBlock(inputs, previous, outputs, config, width, attend=attend, last=last)
    resample = _resampling(kind, config.upsample_type)
    return UpBlock(inputs, previous, outputs, config, width, attend=attend, last=last, resample=resample)


def _resampling(kind: str, of_attention_blocks: str) -> str:
    """Blocks with attention resample as the config says; of the others each kind has its one way."""
    if kind.startswith("Attn"):
        return of_attention_blocks
    return "resnet" if kind.startswith("Resnet") else "conv"
