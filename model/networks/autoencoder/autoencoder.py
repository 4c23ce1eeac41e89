"""The autoencoder between pixels and latents, with the names of diffusers' `AutoencoderKL`.

Config keys (`autoencoder_config`) and tensor names equal those of diffusers 0.42, so that a folder
written by either loads in the other.

This module knows nothing of noise, text or files.
Sources: Rombach et al. 2022 (arXiv:2112.10752), section 3.1; Esser et al. 2021 (arXiv:2012.09841), appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from denoised.model.networks.autoencoder.autoencoder_blocks import DecoderUpBlock, EncoderDownBlock, PlainMidBlock
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.networks.autoencoder.tiling import evaluate_in_tiles
from denoised.model.networks.unet.unet_layers import group_norm


@dataclass(frozen=True)
class LatentDistribution:
    """The encoder's normal distribution of a latent, independent in every component.

    Attributes:
        mean: (B, latent_channels, H, W).
        log_variance: the same shape, in [−30, 20].
    """

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std·noise; noise: standard normal, of the shape of the mean."""
        return self.mean + (0.5 * self.log_variance).exp() * noise  # std = e^(½·log σ²)


class Autoencoder(nn.Module):
    """Pixels in [−1, 1] ↔ latents with a fraction of their height and width.

    `AutoencoderConfig.scale` and `unscale` convert between these latents and those of the U-Net.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        # 1×1 convolutions on both sides of the latent, from the quantized ancestor (VQGAN) of this network.
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else None

    @property
    def latent_tile(self) -> int:
        """Latents along each side of a tile: what the autoencoder was trained on."""
        return self.config.sample_size // self.config.downscale

    def encode(self, pixels: Tensor, *, tiled: bool = False) -> LatentDistribution:
        """The distribution of the latents of images.

        pixels: (B, in_channels, H, W) in [−1, 1], H and W multiples of `config.downscale`.
        tiled: encode images larger than `sample_size` in overlapping tiles, which bounds the memory.
        """
        if tiled and max(pixels.shape[-2:]) > self.config.sample_size:
            # A tile of pixels becomes a tile of latents: mean and log-variance are blended alike.
            moments = evaluate_in_tiles(self._encode, pixels, self.config.sample_size, self.latent_tile)
        else:
            moments = self._encode(pixels)  # (B, 2·latent_channels, H/f, W/f)
        mean, log_variance = moments.chunk(2, dim=1)  # each (B, latent_channels, H/f, W/f)
        # The bounds of the paper's code, which keep the standard deviation within e^−15 … e^10.
        return LatentDistribution(mean, log_variance.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """Images (B, out_channels, H·f, W·f), about in [−1, 1], of unscaled latents.

        latents: (B, latent_channels, H, W).
        tiled: decode latents larger than `latent_tile` in overlapping tiles, which bounds the memory.
        """
        if tiled and max(latents.shape[-2:]) > self.latent_tile:
            return evaluate_in_tiles(self._decode, latents, self.latent_tile, self.config.sample_size)
        return self._decode(latents)

    def _encode(self, pixels: Tensor) -> Tensor:
        moments = self.encoder(pixels)
        return self.quant_conv(moments) if self.quant_conv is not None else moments

    def _decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents) if self.post_quant_conv is not None else latents)


class Encoder(nn.Module):
    """(B, in_channels, H, W) → (B, 2·latent_channels, H/f, W/f): mean and log-variance, joined."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels, residual = config.block_out_channels, config.residual
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            EncoderDownBlock(
                channels[max(level - 1, 0)],
                channels[level],
                residual,
                layers=config.layers_per_block,
                last=level == len(channels) - 1,
            )
            for level in range(len(channels))
        )
        self.mid_block = PlainMidBlock(channels[-1], residual, attend=config.mid_block_add_attention)
        self.conv_norm_out = group_norm(config.norm_num_groups, channels[-1], residual.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)  # (B, channels[0], H, W)
        for block in self.down_blocks:
            x = block(x)  # each but the last halves height and width
        return self.conv_out(self.conv_act(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """(B, latent_channels, H, W) → (B, out_channels, H·f, W·f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels, residual = config.block_out_channels[::-1], config.residual  # the lowest resolution first
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = PlainMidBlock(channels[0], residual, attend=config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            DecoderUpBlock(
                channels[max(i - 1, 0)],
                channels[i],
                residual,
                layers=config.layers_per_block + 1,
                last=i == len(channels) - 1,
            )
            for i in range(len(channels))
        )
        self.conv_norm_out = group_norm(config.norm_num_groups, channels[-1], residual.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))  # (B, channels[0], H, W)
        for block in self.up_blocks:
            x = block(x)  # each but the last doubles height and width
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))
