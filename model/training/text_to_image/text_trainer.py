"""The second stage: the loss and the batches of a text encoder and a U-Net in training.

This module knows no files and no progress bars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from denoised.model.diffusion.noise import level_tables
from denoised.model.diffusion.predictions import add_noise, training_target
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.text.tokenizer import TextTokenizer
from denoised.model.training.emoji.captions import CaptionDropout, draw_caption, full_caption
from denoised.model.training.emoji.emoji_pictures import EmojiPictures
from denoised.model.training.learner import Learner, shuffled_indices, stratified_timesteps
from denoised.model.training.precision import choose_precision
from denoised.model.training.text_to_image.latents import Float16
from denoised.model.training.text_to_image.text_presets import text_encoder_config, text_unet_config
from denoised.model.training.text_to_image.text_training_config import (
    PREDICTION_TYPE,
    TIMESTEPS,
    TextTrainingConfig,
)

MEASURED_PICTURES = 128
TIMED_BATCH = 16


@dataclass(frozen=True)
class CaptionedLatents:
    """What the second stage is trained on.

    Attributes:
        pictures: with the words for their captions.
        latents: (N·C, channels, H, W), one for each combination, scaled for the U-Net.
        held_out: (N·C,) which combinations are never trained on.
        tokenizer: of the captions.
        merges: the pairs that the tokenizer merges, for its files.
        autoencoder: decodes samples.
        preview: the linear map of `fit_preview`.
    """

    pictures: EmojiPictures
    latents: Float16
    held_out: npt.NDArray[np.bool_]
    tokenizer: TextTokenizer
    merges: list[tuple[str, str]]
    autoencoder: Autoencoder
    preview: list[list[float]]

    def read_latents(self, combinations: npt.NDArray[np.int64]) -> Tensor:
        """The latents of B combinations: (B, channels, H, W) float32."""
        return torch.from_numpy(self.latents[combinations].astype(np.float32))

    def encode_captions(self, captions: list[str]) -> Tensor:
        """The framed token ids of B captions: (B, N)."""
        return torch.tensor([self.tokenizer.encode(caption) for caption in captions])


class TextToImageNet(nn.Module):
    """A U-Net and the text encoder that it reads, trained together."""

    def __init__(self, unet: TextUNet, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """x: (B, C, H, W); t: (B,); tokens: (B, N). Returns the prediction, of the shape of x."""
        return self.unet(x, t, self.text_encoder(tokens).last)


class TextTrainer(Learner):
    """A text-to-image model in training.

    trained: the combinations that are trained on.
    measured_combinations: some that are not, for the log.
    alpha, sigma: (T,) the noise schedule's tables.
    """

    config: TextTrainingConfig
    net: TextToImageNet
    measured = ("held_out_loss", "shuffled_loss")

    def __init__(self, config: TextTrainingConfig, data: CaptionedLatents, device: str = "cpu") -> None:
        torch.manual_seed(config.seed)
        net = TextToImageNet(
            TextUNet(text_unet_config(config.shape, data.latents.shape[-1])),
            TextEncoder(
                text_encoder_config(config.shape, data.tokenizer.vocabulary_size, data.tokenizer.length),
                projected=False,
            ),
        )
        initialize_text_encoder(net.text_encoder)
        super().__init__(config, net.to(memory_format=torch.channels_last), device)  # type: ignore[call-overload]
        self.data = data
        # Indices of combinations; an epoch is one pass over them.
        self.trained = np.flatnonzero(~data.held_out)
        self.measured_combinations = held_out_examples(data, MEASURED_PICTURES)
        self.alpha, self.sigma = level_tables(config.schedule, self.device)
        self.dropout = CaptionDropout()
        self.amp_dtype = choose_precision(config.precision, self.net, self._timed_loss, self.device)

    def backward(self) -> float:
        """Accumulate the gradient of the batch's mean loss, and return that loss."""
        loss = self.loss(*(tensor.to(self.device) for tensor in self._draw_batch()))
        loss.backward()
        return float(loss.detach())

    def loss(self, x0: Tensor, t: Tensor, tokens: Tensor, epsilon: Tensor) -> Tensor:
        """The mean of ‖f_θ(x_t, t, text) − v‖²/d (Salimans & Ho 2022, arXiv:2202.00512, appendix D).

        x0, epsilon: (B, C, H, W) latents and noise.
        t: (B,) timesteps.
        tokens: (B, N) framed captions.
        """
        alpha, sigma = self.alpha[t], self.sigma[t]  # (B,)
        x = add_noise(x0, epsilon, alpha, sigma).contiguous(memory_format=torch.channels_last)
        with self.autocast():
            output = self.net(x, t, tokens)
        # The difference in float32: in bfloat16 the square of a small error would vanish.
        return (output.float() - training_target(x0, epsilon, alpha, sigma, PREDICTION_TYPE)).square().mean()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The loss on pictures that are not trained on, with their captions and with each other's.

        A model that ignores the text has the same loss with both.
        """
        generator = torch.Generator().manual_seed(0)
        count = len(self.measured_combinations)
        x0 = self.data.read_latents(self.measured_combinations)
        tokens = self.data.encode_captions(
            [full_caption(self.data.pictures, int(each)) for each in self.measured_combinations]
        )
        # Stratified timesteps rise from row to row; permuted, none depends on an example's place.
        t = stratified_timesteps(count, TIMESTEPS, generator)[torch.randperm(count, generator=generator)]
        epsilon = torch.randn(x0.shape, generator=generator)
        # Rolled by one: each picture with its neighbor's caption.
        captions = {"held_out_loss": tokens, "shuffled_loss": tokens.roll(1, dims=0)}
        return {
            name: float(self.loss(*(tensor.to(self.device) for tensor in (x0, t, own, epsilon))))
            for name, own in captions.items()
        }

    def averaged_net(self) -> TextToImageNet:
        """A new network with the averaged weights."""
        made = TextToImageNet(
            TextUNet(self.net.unet.config), TextEncoder(self.net.text_encoder.config, projected=False)
        ).to(self.device)
        made.load_state_dict(self.ema)
        return made.eval().requires_grad_(False)

    def _draw_batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x_0, t, tokens, ε) of this step, on the CPU. Each combination comes once per epoch."""
        config, generator = self.config, self.generator
        index = shuffled_indices(len(self.trained), config.seed, self.images_seen, config.batch).numpy()
        # A position in the epoch → a combination of drawing and color.
        combinations = self.trained[index]
        x0 = self.data.read_latents(combinations)
        t = stratified_timesteps(config.batch, TIMESTEPS, generator)
        # Parts are left out at random, so that short captions work; everything, for the unconditional branch.
        captions = [draw_caption(self.data.pictures, int(each), self.dropout, generator) for each in combinations]
        epsilon = torch.randn(x0.shape, generator=generator)
        return x0, t, self.data.encode_captions(captions), epsilon

    def _timed_loss(self) -> Tensor:
        x = self.data.read_latents(np.arange(TIMED_BATCH) % len(self.data.latents)).to(self.device)
        tokens = self.data.encode_captions([""] * TIMED_BATCH).to(self.device)
        return self.net(x, torch.full((TIMED_BATCH,), 500, device=self.device), tokens).float().square().mean()


@torch.no_grad()
def initialize_text_encoder(encoder: TextEncoder) -> None:
    """Draw the token and position tables as GPT-2 and CLIP do, with a standard deviation of 0.02 and 0.01.

    torch's default of 1 would drown the layers' outputs.
    """
    embeddings = encoder.text_model.embeddings
    embeddings.token_embedding.weight.normal_(std=0.02)
    embeddings.position_embedding.weight.normal_(std=0.01)


def held_out_examples(data: CaptionedLatents, count: int) -> npt.NDArray[np.int64]:
    """Combinations that are not trained on, always the same ones, in an order that mixes objects."""
    held_out = np.flatnonzero(data.held_out)
    order = np.random.default_rng(0).permutation(len(held_out))
    return held_out[order[:count]]
