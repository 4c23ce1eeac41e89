"""A served model whose network works on latents, conditioned on text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from denoised.model.backends.text_backend import TextBackend
from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.predictions import Estimate, estimate_from_output
from denoised.model.errors import PlanError
from denoised.model.serving.card import ModelCard
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.latent_pictures import LatentPictures
from denoised.model.serving.plan_compiler import PlanCompiler
from denoised.model.serving.prompt_encoder import PromptEncoder
from denoised.model.serving.protocol import Pictures

CONTEXT = "context"  # the one tensor of this model's conditioning: (B, M, C) hidden states of the text


class LatentModel:
    """Text encoder, U-Net and autoencoder of the Stable Diffusion family: a `ServedModel`.

    Attributes:
        backend: What evaluates the U-Net.
        device: Where.
    """

    def __init__(
        self,
        backend: TextBackend,
        device: torch.device,
        prompts: PromptEncoder,
        pictures: LatentPictures,
        plans: PlanCompiler,
        prediction_type: str,
        clipping: Clipping,
        card: ModelCard,
    ) -> None:
        self.backend = backend
        self.device = device
        self.prediction_type = prediction_type
        self.clipping = clipping
        self.card = card
        self._prompts = prompts
        self._pictures = pictures
        self._plans = plans

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latents of the model's own image size."""
        return self.shape_of(ConditioningRequest())

    def shape_of(self, request: ConditioningRequest) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a request."""
        latent = self.card.latent
        assert latent is not None
        width, height = request.width or self.card.width, request.height or self.card.height
        return latent.channels, height // latent.downscale, width // latent.downscale

    @property
    def min_pipelined_images(self) -> int | None:
        """See `ServedModel`."""
        return self.backend.min_pipelined_images

    def plan(
        self, sampler: str, steps: int, eta: float, spacing: str | None = None, karras: bool | None = None
    ) -> Plan:
        """Compile the plan of a request on this model's noise schedule.

        Raises:
            PlanError: for values that the sampler does not offer.
        """
        return self._plans.compile(sampler, steps, eta, spacing, karras)

    def encode(self, requests: Sequence[ConditioningRequest]) -> Conditioning:
        """Encode prompts: `context` (B, M, C), of one length for all; no prompt is the empty one.

        Raises:
            PlanError: for a label.
        """
        for request in requests:
            if request.label is not None:
                raise PlanError(f"label = {request.label}: {self.card.name} takes a prompt")
        return Conditioning({CONTEXT: self._prompts.encode([request.prompt or "" for request in requests])})

    @torch.inference_mode()
    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
        """Estimate (x̂_0, ε̂) of latents x (B, C, H, W) at levels t, α, σ (B,)."""
        output = self.backend(x, t, conditioning[CONTEXT].to(self.device))
        return self._estimate(output, x, alpha, sigma)

    @torch.inference_mode()
    def begin(
        self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning
    ) -> Callable[[], Estimate]:
        """Begin what `denoise` does, in the background if the backend can, and return a function that waits for it."""
        output = self.backend.begin(x, t, conditioning[CONTEXT].to(self.device))
        return lambda: self._estimate(output(), x, alpha, sigma)

    def decode(self, x0: Tensor) -> Pictures:
        """Latents x_0 (B, C, h, w) → pictures (B, H, W, channels), by the autoencoder. Takes long."""
        return self._pictures.decode(x0)

    def preview(self, x0: Tensor) -> Pictures:
        """Latents x̂_0 (B, C, h, w) → pictures (B, h, w, 3), by a linear map."""
        return self._pictures.preview(x0)

    def _estimate(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        return estimate_from_output(output[:, : x.shape[1]], x, alpha, sigma, self.prediction_type)
