"""The text-conditioned U-Net of the Stable Diffusion family, with the names of diffusers' `UNet2DConditionModel`.

Config keys (`text_unet_config`) and tensor names equal those of diffusers 0.42, so that a folder
written by either loads in the other.

This module knows nothing of text encoders, autoencoders, samplers or files.
Sources: Rombach et al. 2022 (arXiv:2112.10752); Podell et al. 2023 (arXiv:2307.01952), section 2, for the pooled text
and the size ids; Meng et al. 2023 (arXiv:2210.03142) for the guidance scale as an input.
"""

from __future__ import annotations

from torch import Tensor, nn

from denoised.model.networks.text_unet.contracting_path import ContractingPath
from denoised.model.networks.text_unet.cross_attention_blocks import CrossAttentionUpBlock
from denoised.model.networks.text_unet.residuals import Residuals
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.networks.unet.unet_blocks import UpBlock
from denoised.model.networks.unet.unet_layers import ACTIVATIONS, group_norm


class TextUNet(ContractingPath):
    """f_θ(x_t, t, text) → a tensor like the latents x_t: the noise, v or x_0, as the scheduler file says.

    Raises:
        CheckpointError: for a config whose blocks cannot be built, naming channels and groups.
    """

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__(config)
        channels, embed_dim = config.block_out_channels, config.embed_dim
        # The lowest resolution first; each block but the last doubles height and width.
        self.up_blocks = nn.ModuleList(_build_up_block(config, i, embed_dim) for i in reversed(range(config.levels)))
        self.conv_norm_out = group_norm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_act = ACTIVATIONS[config.act_fn]()
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        *,
        label: Tensor | None = None,
        pooled: Tensor | None = None,
        size_ids: Tensor | None = None,
        guidance: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """Evaluate the network.

        x: (B, in_channels, H, W), H and W multiples of `config.downscale`.
        t: (B,) noise levels in units of training timesteps.
        context: (B, M, cross_attention_dim) hidden states of the text.
        label: (B,) indices or numbers, or (B, D) vectors, as `class_embed_type` says.
        pooled: (B, P) pooled text of SDXL.
        size_ids: (B, K) numbers of SDXL: the original height and width, the top and left of the crop, and the target
            height and width; the refiner has an aesthetic score instead of the last two.
        guidance: (B,) guidance scales of a distilled network; without them the network takes no scale into account.
        residuals: of ControlNets.

        Returns (B, out_channels, H, W).
        """
        emb = self.embed(t, x.dtype, label=label, pooled=pooled, size_ids=size_ids, guidance=guidance)
        return self.evaluate(x, emb, context, residuals=residuals)

    def evaluate(self, x: Tensor, emb: Tensor, context: Tensor, *, residuals: Residuals | None = None) -> Tensor:
        """`forward` with an embedding that was made before: emb (B, embed_dim) of `embed`."""
        if self.config.center_input_sample:
            x = 2 * x - 1.0  # [0, 1] → [−1, 1]
        # The U-Net of Ho et al. 2020 (arXiv:2006.11239), appendix B, with cross-attention to the text (Rombach et al.
        # 2022, arXiv:2112.10752, section 3.3).
        skips = self.descend(self.conv_in(x), emb, context)
        h = self.turn(skips[-1], emb, context)  # the first up block joins the last skip tensor again
        if residuals is not None:
            skips, h = residuals.add_to(skips, h)
        for block in self.up_blocks:
            attends = isinstance(block, CrossAttentionUpBlock)
            h = block(h, skips, emb, context) if attends else block(h, skips, emb)
        # (B, block_out_channels[0], H, W) → (B, out_channels, H, W)
        return self.conv_out(self.conv_act(self.conv_norm_out(h)))


def _build_up_block(config: TextUNetConfig, level: int, embed_dim: int) -> nn.Module:
    channels, last = config.block_out_channels, level == 0
    # Channels of the level above, whose skip tensor comes last; of the level below, the input; and of this level.
    skip, below, own = channels[max(level - 1, 0)], channels[min(level + 1, config.levels - 1)], channels[level]
    residual = config.residual(config.layers(level))
    if config.up_block_types[config.levels - 1 - level] == "UpBlock2D":
        return UpBlock(skip, below, own, residual, embed_dim, attend=False, last=last)
    return CrossAttentionUpBlock(
        skip,
        below,
        own,
        residual,
        embed_dim,
        transformer=config.transformer(level),
        transformer_layers=config.up_transformer_layers(level),
        last=last,
    )
