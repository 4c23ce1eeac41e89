"""The way down of a text-conditioned U-Net, with its embeddings and its middle: what a ControlNet has a copy of.

Sources: Rombach et al. 2022 (arXiv:2112.10752), section 3.3; Podell et al. 2023 (arXiv:2307.01952), section 2, for the
pooled text and the size ids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from denoised.model.networks.text_unet.cross_attention_blocks import CrossAttentionDownBlock, CrossAttentionMidBlock
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.networks.text_unet.text_unet_embeddings import (
    GuidedTimestepEmbedding,
    build_added_embedding,
    build_label_embedding,
    guidance_features,
)
from denoised.model.networks.unet.embeddings import SinusoidalFeatures
from denoised.model.networks.unet.unet_blocks import DownBlock


class ContractingPath(nn.Module):
    """The modules up to the lowest resolution, with diffusers' tensor names.

    Raises:
        CheckpointError: for a config whose blocks cannot be built, naming channels and groups.
    """

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, embed_dim = config.block_out_channels, config.embed_dim
        # (B, C, H, W) → (B, channels[0], H, W); the names of the modules are those of the tensors in a checkpoint.
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_proj = SinusoidalFeatures(channels[0], config.flip_sin_to_cos, config.freq_shift)
        self.time_embedding = GuidedTimestepEmbedding(
            channels[0], embed_dim, activation=config.act_fn, guidance_dim=config.time_cond_proj_dim
        )
        self.class_embedding = build_label_embedding(config, embed_dim)
        self.add_time_proj, self.add_embedding = build_added_embedding(config, embed_dim)
        # The highest resolution first; each block but the last halves height and width.
        self.down_blocks = nn.ModuleList(_build_down_block(config, i, embed_dim) for i in range(config.levels))
        self.mid_block = _build_mid_block(config, embed_dim)

    def embed(
        self,
        t: Tensor,
        dtype: torch.dtype,
        *,
        label: Tensor | None = None,
        pooled: Tensor | None = None,
        size_ids: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The embedding (B, embed_dim) that every block receives; `forward` has the arguments.

        dtype: of the network.
        """
        features = None
        if guidance is not None:
            assert self.config.time_cond_proj_dim is not None, "this network takes no guidance scale"
            # (B, time_cond_proj_dim) sinusoids of the guidance scale (Meng et al. 2023, section 3.1).
            features = guidance_features(guidance, self.config.time_cond_proj_dim).to(dtype)
        # (B, block_out_channels[0]) sinusoids → (B, embed_dim); everything below is added to it.
        emb: Tensor = self.time_embedding(self.time_proj(t).to(dtype), features)
        if self.class_embedding is not None:
            emb = emb + self._embed_label(label, dtype)
        else:
            assert label is None, "a label was given to a network without classes"
        if self.add_embedding is not None:
            emb = emb + self._embed_added(pooled, size_ids, dtype)
        else:
            assert pooled is None, "pooled text was given to a network without an added embedding"
            assert size_ids is None, "size ids were given to a network without an added embedding"
        return emb

    def descend(self, h: Tensor, emb: Tensor, context: Tensor) -> list[Tensor]:
        """The skip tensors, from h (B, block_out_channels[0], H, W) itself to the lowest resolution.

        emb: (B, embed_dim); context: (B, M, cross_attention_dim).
        """
        skips = [h]
        for block in self.down_blocks:
            attends = isinstance(block, CrossAttentionDownBlock)
            skips.extend(block(skips[-1], emb, context) if attends else block(skips[-1], emb))
        return skips

    def turn(self, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """The middle block's output (B, block_out_channels[−1], H/f, W/f), f = config.downscale; h without one."""
        return h if self.mid_block is None else self.mid_block(h, emb, context)

    def _embed_label(self, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        assert label is not None, "this network needs a label for every image"
        assert self.class_embedding is not None
        if self.config.class_embed_type == "timestep":
            label = self.time_proj(label).to(dtype)  # (B, features)
        return self.class_embedding(label).to(dtype)

    def _embed_added(self, pooled: Tensor | None, size_ids: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Pooled text and sinusoids of the size ids, in one vector (Podell et al. 2023, section 2.2)."""
        assert pooled is not None, "this network needs pooled text"
        assert size_ids is not None, "this network needs size ids"
        assert self.add_time_proj is not None
        assert self.add_embedding is not None
        sizes = self.add_time_proj(size_ids.flatten()).view(len(pooled), -1)  # (B, K·addition_time_embed_dim)
        return self.add_embedding(torch.cat([pooled, sizes], dim=-1).to(dtype))


def _build_down_block(config: TextUNetConfig, level: int, embed_dim: int) -> nn.Module:
    channels = config.block_out_channels
    in_channels, out_channels, last = channels[max(level - 1, 0)], channels[level], level == config.levels - 1
    residual = config.residual(config.layers(level))
    if config.down_block_types[level] == "DownBlock2D":
        return DownBlock(in_channels, out_channels, residual, embed_dim, attend=False, last=last)
    return CrossAttentionDownBlock(
        in_channels,
        out_channels,
        residual,
        embed_dim,
        transformer=config.transformer(level),
        transformer_layers=config.transformer_layers(level),
        last=last,
    )


def _build_mid_block(config: TextUNetConfig, embed_dim: int) -> CrossAttentionMidBlock | None:
    if config.mid_block_type is None:
        return None
    attends = config.mid_block_type == "UNetMidBlock2DCrossAttn"
    return CrossAttentionMidBlock(
        config.block_out_channels[-1],
        config.residual(1),
        embed_dim,
        transformer=config.transformer(-1, middle=True) if attends else None,
        transformer_layers=config.mid_transformer_layers(),
        scale=config.mid_block_scale_factor,
    )
