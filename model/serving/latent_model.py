"""A served model whose network works on latents, conditioned on text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.backends.adapted_backend import AdaptedBackend
from denoised.model.backends.text_backend import TextBackend
from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.predictions import Estimate, estimate_from_output
from denoised.model.errors import PlanError
from denoised.model.serving.card import ModelCard
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.latent_pictures import LatentPictures
from denoised.model.serving.lora_library import LoraLibrary
from denoised.model.serving.plan_compiler import PlanCompiler
from denoised.model.serving.prompt_encoder import PromptEncoder
from denoised.model.serving.protocol import Pictures

# The tensors of this model's conditioning: (B, M, C) hidden states of the text; with adapters, their weights (B, A).
CONTEXT = "context"
LORA_WEIGHTS = "lora_weights"
UNET, TEXT_ENCODER = "unet", "text_encoder"  # components that adapters change


@dataclass(frozen=True)
class Adapters:
    """The low-rank adapters of a model.

    Attributes:
        library: Which there are.
        backend: Evaluates the U-Net with them.
    """

    library: LoraLibrary
    backend: AdaptedBackend


class LatentModel:
    """Text encoder, U-Net and autoencoder of the Stable Diffusion family: a `ServedModel`.

    Attributes:
        backend: What evaluates the U-Net.
        device: Where.
    """

    min_pipelined_images: int | None = None

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
        adapters: Adapters | None = None,
    ) -> None:
        self.backend = backend
        self.device = device
        self.prediction_type = prediction_type
        self.clipping = clipping
        self.card = card
        self._prompts = prompts
        self._pictures = pictures
        self._plans = plans
        self._adapters = adapters

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
        prompts = [request.prompt or "" for request in requests]
        if self._adapters is None:
            return Conditioning({CONTEXT: self._prompts.encode(prompts)})
        weights = self._adapters.library.weights([request.loras for request in requests])
        loras = self._adapters.library.rows(weights, TEXT_ENCODER)
        return Conditioning({CONTEXT: self._prompts.encode(prompts, loras), LORA_WEIGHTS: weights})

    @torch.inference_mode()
    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
        """Estimate (x̂_0, ε̂) of latents x (B, C, H, W) at levels t, α, σ (B,)."""
        output = self._evaluate(conditioning, x, t, conditioning[CONTEXT].to(self.device))
        return estimate_from_output(output[:, : x.shape[1]], x, alpha, sigma, self.prediction_type)

    def _evaluate(self, conditioning: Conditioning, *inputs: Tensor) -> Tensor:
        if self._adapters is None:
            return self.backend(*inputs)
        loras = self._adapters.library.rows(conditioning[LORA_WEIGHTS], UNET)
        return self._adapters.backend(loras, *inputs)

    def begin(
        self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning
    ) -> Callable[[], Estimate]:
        """Evaluate at once: nothing runs in the background."""
        estimate = self.denoise(x, t, alpha, sigma, conditioning)
        return lambda: estimate

    def decode(self, x0: Tensor) -> Pictures:
        """Latents x_0 (B, C, h, w) → pictures (B, H, W, channels), by the autoencoder. Takes long."""
        return self._pictures.decode(x0)

    def preview(self, x0: Tensor) -> Pictures:
        """Latents x̂_0 (B, C, h, w) → pictures (B, h, w, 3), by a linear map."""
        return self._pictures.preview(x0)
