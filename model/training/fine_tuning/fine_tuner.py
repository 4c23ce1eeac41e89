"""The loss and the batches of a text-to-image model that is fine-tuned: its U-Net, or an adapter next to it.

Text encoders are trained with it if the configuration says so. The autoencoder stays as it is. This module knows no
files and no progress bars.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from denoised.model.checkpoints.text_to_image.text_pipeline import TextPipeline
from denoised.model.diffusion.noise import level_tables
from denoised.model.diffusion.predictions import add_noise, training_target
from denoised.model.errors import TrainingError
from denoised.model.serving.lora_adapters import ENCODERS
from denoised.model.training.fine_tuning.caption_encoding import CaptionEncoder
from denoised.model.training.fine_tuning.fine_tuning_config import FineTuningConfig
from denoised.model.training.fine_tuning.lora_net import LoraNet
from denoised.model.training.fine_tuning.tuning_data import TuningData
from denoised.model.training.learner import Learner, shuffled_indices, stratified_timesteps
from denoised.model.training.precision import choose_precision

MEASURED_PICTURES = 16


@dataclass(frozen=True)
class Batch:
    """Latents x_0 and noise ε (B, C, h, w), timesteps t (B,), and captions."""

    x0: Tensor
    epsilon: Tensor
    t: Tensor
    captions: list[str]


class FineTuner(Learner):
    """A model that is fine-tuned.

    net: the trained networks by component ("unet", "text_encoder", "text_encoder_2"), or with a rank the branches of
        the adapter next to them.

    Raises:
        TrainingError: for a model that takes the guidance scale as an input: it was distilled, not trained on pictures.
    """

    config: FineTuningConfig
    measured = ("fixed_loss",)

    def __init__(
        self,
        config: FineTuningConfig,
        pipeline: TextPipeline,
        text: CaptionEncoder,
        data: TuningData,
        device: str = "cpu",
    ) -> None:
        self.added_inputs = pipeline.unet.config.added_inputs
        if "guidance" in self.added_inputs:
            raise TrainingError("the model takes the guidance scale as an input, which fine-tuning would undo")
        torch.manual_seed(config.seed)
        self.unet = pipeline.unet.eval().to(device)
        trained: dict[str, nn.Module] = {"unet": self.unet, **dict(zip(ENCODERS, text.networks, strict=False))}
        net: nn.Module = nn.ModuleDict(trained).requires_grad_(True)
        super().__init__(config, LoraNet(trained, config.lora_rank) if config.lora_rank else net, device)
        self.data = data
        self._text = text
        self._prediction_type = pipeline.noise.prediction_type
        self._size = pipeline.image_size
        self._alpha, self._sigma = level_tables(pipeline.schedule, self.device)
        self.amp_dtype = choose_precision(config.precision, self.net, self._timed_loss, self.device)

    def backward(self) -> float:
        """Accumulate the gradient of the batch's mean loss, and return that loss."""
        loss = self.loss(self._draw_batch())
        loss.backward()
        return float(loss.detach())

    def loss(self, batch: Batch) -> Tensor:
        """The mean of ‖f_θ(x_t, t, text) − target‖²/d, where the target is what the model predicts: ε, v or x_0."""
        t = batch.t.to(self.device)
        x0, epsilon = batch.x0.to(self.device), batch.epsilon.to(self.device)
        # (B,), as α_t and σ_t of x_t = α_t·x_0 + σ_t·ε.
        alpha, sigma = self._alpha[t], self._sigma[t]
        x = add_noise(x0, epsilon, alpha, sigma)
        with self.autocast():
            context, added = self._condition(batch.captions)
            output = self.unet(x, t, context, **added)
        target = training_target(x0, epsilon, alpha, sigma, self._prediction_type)
        # The difference in float32: in bfloat16 the square of a small error would vanish.
        return (output.float() - target).square().mean()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The loss on the same pictures, timesteps and noise each time: it varies less than that of the batches."""
        generator = torch.Generator().manual_seed(0)
        index = torch.arange(min(MEASURED_PICTURES, len(self.data.captions)))
        return {"fixed_loss": float(self.loss(self._batch(index, generator, dropout=0.0)))}

    def _draw_batch(self) -> Batch:
        """Each picture comes once per epoch."""
        config = self.config
        index = shuffled_indices(len(self.data.captions), config.seed, self.images_seen, config.batch)
        return self._batch(index, self.generator, config.caption_dropout)

    def _batch(self, index: Tensor, generator: torch.Generator, dropout: float) -> Batch:
        t = stratified_timesteps(len(index), len(self._alpha), generator)
        # Stratified timesteps rise from row to row; permuted, none depends on a picture's place.
        t = t[torch.randperm(len(index), generator=generator)]
        dropped = (torch.rand(len(index), generator=generator) < dropout).tolist()
        # The empty caption trains the unconditional branch of guidance (Ho & Salimans 2022, arXiv:2207.12598, alg. 1).
        captions = ["" if drop else self.data.captions[k] for k, drop in zip(index.tolist(), dropped, strict=True)]
        x0 = self.data.latents[index]
        return Batch(x0, torch.randn(x0.shape, generator=generator), t, captions)

    def _condition(self, captions: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden states (B, M, C) of captions, and what else the U-Net takes."""
        context, pooled = self._text.encode(captions)
        height, width = map(float, self._size)
        # (B, 6): size of the original, top and left of the crop, size of the target (Podell et al. 2023, section 2.2).
        size_ids = torch.tensor([[height, width, 0.0, 0.0, height, width]] * len(captions), device=self.device)
        added = {"pooled": pooled, "size_ids": size_ids}
        return context, {name: added[name] for name in self.added_inputs}

    def _timed_loss(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        index = torch.arange(self.config.batch) % len(self.data.captions)
        return self.loss(self._batch(index, generator, dropout=0.0))
