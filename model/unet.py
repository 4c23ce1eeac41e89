"""The U-Net that predicts noise, with the names of diffusers' `UNet2DModel`.

Config keys (`model.config`) and state-dict names equal those of diffusers 0.42, so that
folders written by either load in the other. Supported here: Down/Up and AttnDown/AttnUp
blocks, the middle block, positional time embedding, class embedding.

This module knows nothing of noise schedules, samplers or files.
Source: Ho et al. 2020 (arXiv:2006.11239) section 4; Ronneberger et al. 2015.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import DownBlock, MidBlock, TimestepEmbedding, UpBlock, sinusoid
from model.config import UNetConfig


class UNet(nn.Module):
    """f_θ(x, t, label) → a tensor like x: noise, v or x_0, as the checkpoint's scheduler file says.

    Raises:
        CheckpointError: from `UNetConfig` for what is not implemented.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        width = config.time_embedding_dim or 4 * channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], width)
        labels = config.num_class_embeds
        self.class_embedding = nn.Embedding(labels, width) if labels is not None else None
        self.down_blocks = nn.ModuleList(
            DownBlock(
                channels[max(i - 1, 0)],
                channels[i],
                config,
                width,
                attend=kind.startswith("Attn"),
                last=i == len(channels) - 1,
            )
            for i, kind in enumerate(config.down_block_types)
        )
        self.mid_block = MidBlock(channels[-1], config, width)
        rising = channels[::-1]
        self.up_blocks = nn.ModuleList(
            UpBlock(
                rising[min(i + 1, len(rising) - 1)],
                rising[max(i - 1, 0)],
                rising[i],
                config,
                width,
                attend=kind.startswith("Attn"),
                last=i == len(rising) - 1,
            )
            for i, kind in enumerate(config.up_block_types)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def embed(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What every block is told: (B, width) from t (B,) and label (B,) int64."""
        config = self.config
        features = sinusoid(t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        emb: Tensor = self.time_embedding(features.to(dtype))
        if self.class_embedding is None:
            assert label is None, "a label was given to a network without classes"
            return emb
        assert label is not None, "a class-conditional network needs a label for every image"
        return emb + self.class_embedding(label)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        x: (B, C, H, W), H and W multiples of `config.downscale`; t: (B,) noise levels in
        units of training timesteps, one an image; label: (B,) class indices, the last of
        `num_class_embeds` meaning "no label". Returns (B, out_channels, H, W).
        """
        if self.config.center_input_sample:
            x = 2 * x - 1.0
        emb = self.embed(t, label, x.dtype)
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            skips.extend(block(skips[-1], emb))
        h = self.mid_block(skips[-1], emb)
        for block in self.up_blocks:
            h = block(h, skips, emb)
        return self.conv_out(F.silu(self.conv_norm_out(h)))
