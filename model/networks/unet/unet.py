"""The U-Net, with the names of diffusers' `UNet2DModel`.

Config keys (`model.networks.unet.unet_config`) and tensor names equal those of diffusers 0.42, so that a folder
written by either loads in the other.

This module knows nothing of noise schedules, samplers or files.
Source: Ho et al. 2020 (arXiv:2006.11239), section 4 and appendix B; Ronneberger et al. 2015 (arXiv:1505.04597).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from denoised.model.networks.unet.embeddings import TimestepEmbedding, build_class_embedding, build_time_features
from denoised.model.networks.unet.skip_blocks import SkipDownBlock, SkipUpBlock
from denoised.model.networks.unet.unet_blocks import DownBlock, MidBlock, UpBlock
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.networks.unet.unet_layers import group_norm


class UNet(nn.Module):
    """f_θ(x_t, t, label) → a tensor like x_t: the noise, v or x_0, as the checkpoint's scheduler file says.

    Raises:
        CheckpointError: for a config whose blocks cannot be built, naming channels and groups.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        embed_dim = config.time_embedding_dim or 4 * channels[0]
        # (B, C, H, W) → (B, channels[0], H, W); the names of the modules are those of the tensors in a checkpoint.
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_proj, features = build_time_features(config)
        self.time_embedding = TimestepEmbedding(features, embed_dim)
        self.class_embedding = build_class_embedding(config, features, embed_dim)
        # The highest resolution first; each block but the last halves height and width.
        self.down_blocks = nn.ModuleList(_build_down_block(config, i, embed_dim) for i in range(len(channels)))
        self.mid_block = MidBlock(channels[-1], config, embed_dim) if config.mid_block_type is not None else None
        # The lowest resolution first; each block but the last doubles height and width.
        self.up_blocks = nn.ModuleList(_build_up_block(config, i, embed_dim) for i in range(len(channels)))
        self.conv_norm_out = group_norm(config.norm_groups(channels[0]), channels[0], config.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def embed(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The embedding (B, embed_dim) that every block receives.

        t: (B,), the levels of `prepare`; label: (B,), or (B, embed_dim) where a label is an embedding itself; dtype: of
        the network.
        """
        emb: Tensor = self.time_embedding(self.time_proj(t).to(dtype))
        if self.class_embedding is None:
            assert label is None, "a label was given to a network without classes"
            return emb
        assert label is not None, "a class-conditional network needs a label for every image"
        if self.config.class_embed_type == "timestep":
            label = self.time_proj(label).to(dtype)  # (B, features)
        # The class embedding is added to that of the time (Nichol & Dhariwal 2021, arXiv:2102.09672).
        return emb + self.class_embedding(label).to(dtype)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        x: (B, C, H, W), H and W multiples of `config.downscale`; t: (B,) noise levels in
        units of training timesteps (with Fourier features σ, over 0), one for each image; label: (B,)
        class indices, the last of `num_class_embeds` meaning "no label". Returns (B, out_channels, H, W).
        """
        x, level = self.prepare(x, t)
        return self.finish(self.evaluate(x, self.embed(level, label, x.dtype)), level)

    # The three parts of `forward`. A backend replaces the second and calls the other two as they are, so that it
    # computes what a subclass makes of them.

    def prepare(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the blocks see of x (B, C, H, W), and the noise levels (B,) that `embed` and `finish` take."""
        return (2 * x - 1.0 if self.config.center_input_sample else x), t  # [0, 1] → [−1, 1]

    def evaluate(self, x: Tensor, emb: Tensor) -> Tensor:
        """All layers: x (B, C, H, W) of `prepare`, emb (B, embed_dim) of `embed`."""
        return self._up(self._down(x, emb), emb)

    def finish(self, h: Tensor, level: Tensor) -> Tensor:
        """The output, from what the layers give."""
        if self.config.time_embedding_type == "fourier":
            h = h / level.to(h.dtype)[:, None, None, None]  # the last convolution gives σ times the score
        return h

    def _down(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """The skip tensors of the way down; the last one has the lowest resolution."""
        skips, image = [self.conv_in(x)], x  # image: the input at the size of the block, for Skip blocks
        for block in self.down_blocks:
            if isinstance(block, SkipDownBlock):
                # image: (B, C, H/2, W/2) unless the block is the last.
                added, image = block(skips[-1], emb, image)
                skips.extend(added)
            else:
                skips.extend(block(skips[-1], emb))
        return skips

    def _up(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        """From the lowest resolution to the output (B, out_channels, H, W)."""
        h, image = skips[-1], None  # the mid block reads the last skip tensor, and the first up block joins it again
        if self.mid_block is not None:
            # (B, channels[−1], H/f, W/f) with f = config.downscale
            h = self.mid_block(h, emb)
        for block in self.up_blocks:
            if isinstance(block, SkipUpBlock):
                h, image = block(h, skips, emb, image)
            else:
                h = block(h, skips, emb)
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        # NCSN++: the output is the last convolution plus the image that the Skip blocks have summed.
        return h + image if image is not None else h


def _build_down_block(config: UNetConfig, i: int, embed_dim: int) -> nn.Module:
    channels, kind = config.block_out_channels, config.down_block_types[i]
    in_channels, out_channels, last = channels[max(i - 1, 0)], channels[i], i == len(channels) - 1
    attend = kind.startswith("Attn")
    if "Skip" in kind:
        return SkipDownBlock(in_channels, out_channels, config, embed_dim, attend=attend, last=last)
    resample = _resample_type(kind, config.downsample_type)
    return DownBlock(in_channels, out_channels, config, embed_dim, attend=attend, last=last, resample=resample)


def _build_up_block(config: UNetConfig, i: int, embed_dim: int) -> nn.Module:
    rising, kind = config.block_out_channels[::-1], config.up_block_types[i]  # the lowest resolution first
    last = i == len(rising) - 1
    # Channels of the level above, whose skip tensor comes last; of the level below, the input; and of this level.
    skip, below, own = rising[min(i + 1, len(rising) - 1)], rising[max(i - 1, 0)], rising[i]
    attend = kind.startswith("Attn")
    if "Skip" in kind:
        return SkipUpBlock(skip, below, own, config, embed_dim, attend=attend, last=last)
    resample = _resample_type(kind, config.upsample_type)
    return UpBlock(skip, below, own, config, embed_dim, attend=attend, last=last, resample=resample)


def _resample_type(kind: str, type_with_attention: str) -> str:
    """How a block resamples: with attention as the config says, without it as its name says."""
    if kind.startswith("Attn"):
        return type_with_attention
    return "resnet" if kind.startswith("Resnet") else "conv"
