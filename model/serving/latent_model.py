"""A served model whose network works on latents, conditioned on text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from denoised.model.backends.control_backend import evaluate_controls
from denoised.model.backends.text_backend import TextBackend
from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.level_choice import MODELS_OWN, LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.predictions import Estimate, estimate_from_output
from denoised.model.errors import PlanError
from denoised.model.networks.evaluation_memory import EvaluationMemory
from denoised.model.serving.card import ModelCard
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.control_library import ControlLibrary
from denoised.model.serving.latent_pictures import LatentPictures
from denoised.model.serving.lora_adapters import Adapters
from denoised.model.serving.picture_inputs import EDIT, INPAINT, blank_inputs, picture_inputs
from denoised.model.serving.plan_compiler import PlanCompiler
from denoised.model.serving.prompt_encoder import PromptEncoder
from denoised.model.serving.protocol import Picture, Pictures

CONTEXT = "context"  # (B, M, C) hidden states of the text, which every model of this kind is conditioned on
PICTURE = "picture"  # (B, E, h, w) of a U-Net that sees a picture next to the latents
LORA_WEIGHTS = "lora_weights"  # (B, A) of a model with A adapters


class LatentModel:
    """Text encoder, U-Net and autoencoder of the Stable Diffusion family: a `ServedModel`.

    Attributes:
        backend: What evaluates the U-Net.
        device: Where.
        added_inputs: What the U-Net takes besides latents, timestep and text (`TextUNetConfig.added_inputs`).
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
        memory: EvaluationMemory,
        added_inputs: Sequence[str] = (),
        adapters: Adapters | None = None,
        controls: ControlLibrary | None = None,
    ) -> None:
        """adapters: what evaluates the U-Net with adapters or ControlNets; None without any."""
        self.backend = backend
        self.device = device
        self.prediction_type = prediction_type
        self.clipping = clipping
        self.card = card
        self.added_inputs = tuple(added_inputs)
        self._prompts = prompts
        self._pictures = pictures
        self._plans = plans
        self._memory = memory
        self._adapters = adapters
        self._controls = controls

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
    def schedule(self) -> NoiseSchedule:
        """The noise levels of its training."""
        return self._plans.schedule

    @property
    def min_pipelined_images(self) -> int | None:
        """See `ServedModel`."""
        return self.backend.min_pipelined_images

    def plan(self, sampler: str, steps: int, eta: float, levels: LevelChoice = MODELS_OWN) -> Plan:
        """Compile the plan of a request on this model's noise schedule.

        Raises:
            PlanError: for values that the sampler does not offer.
        """
        return self._plans.compile(sampler, steps, eta, levels)

    def encode(self, requests: Sequence[ConditioningRequest]) -> Conditioning:
        """Encode prompts: `context` (B, M, C), of one length for all, and the inputs in `added_inputs`.

        No prompt is the empty one. `pooled`: (B, P) of the text. `size_ids`: (B, 6), as in diffusers' pipeline: the
        original and the target size are the image's own, and nothing is cropped. `guidance`: (B,) scales.
        `lora_weights`: (B, A) of the model's A adapters.

        Raises:
            PlanError: for a label, and for an adapter that the model does not offer.
            CheckpointError: for an adapter that cannot be read any more.
        """
        for request in requests:
            if request.label is not None:
                raise PlanError(f"label = {request.label}: {self.card.name} takes a prompt")
        loras = {}
        if self._adapters is not None:
            loras[LORA_WEIGHTS] = self._adapters.library.weights([request.loras for request in requests])
        context, pooled = self._prompts.encode(requests)  # (B, M, C), (B, P)
        added = {
            "pooled": pooled,
            "size_ids": torch.tensor([self._size_ids(request) for request in requests]),  # (B, 6)
            "guidance": torch.tensor([request.guidance_scale for request in requests]),  # (B,)
        }
        pictures = {}
        if self.card.pictures in (EDIT, INPAINT):
            blank = blank_inputs(self.card.pictures, self.shape_of(requests[0]))
            pictures[PICTURE] = blank.expand(len(requests), -1, -1, -1)
        return Conditioning(
            {CONTEXT: context, **{name: added[name] for name in self.added_inputs}, **loras, **pictures}
        )

    def with_pictures(
        self, conditioning: Conditioning, requests: Sequence[ConditioningRequest], pictures: Mapping[str, Picture]
    ) -> Conditioning:
        """Add `picture` (B, E, h, w), what the U-Net sees next to the latents, zeros in the rows without a picture; and
        ControlNets, with what they make of their pictures.

        Raises:
            PlanError: for a ControlNet that the model does not offer.
            CheckpointError: for one that cannot be read any more.
        """
        conditioning = self._with_controls(conditioning, requests, pictures)
        if self.card.pictures not in (EDIT, INPAINT) or "image" not in pictures:
            return conditioning
        inputs = picture_inputs(self.card.pictures, self._pictures, pictures["image"], pictures.get("mask")).cpu()
        is_shown = [request.has_image or self.card.pictures == INPAINT for request in requests]
        shown = torch.tensor(is_shown)[:, None, None, None]
        tensors = {**conditioning.tensors, PICTURE: torch.where(shown, inputs, torch.zeros(()))}
        return replace(conditioning, tensors=tensors)

    def _with_controls(
        self, conditioning: Conditioning, requests: Sequence[ConditioningRequest], pictures: Mapping[str, Picture]
    ) -> Conditioning:
        asked = requests[0].controls
        if not asked:
            return conditioning
        if self._controls is None:
            raise PlanError(f"controls: {self.card.name} offers no ControlNets")
        found = self._controls.controls(asked, [pictures[each.picture] for each in asked])
        rows = (tuple(each for each in found if each.is_seen_by(request)) for request in requests)
        return replace(conditioning, controls=tuple(rows))

    def prepare(self, requests: Sequence[ConditioningRequest]) -> None:
        """Encode the prompts of several jobs in one evaluation of each text encoder, into the cache."""
        self._prompts.prepare(requests)

    @torch.inference_mode()
    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
        """Estimate (x̂_0, ε̂) of latents x (B, C, H, W) at levels t, α, σ (B,)."""
        backend, inputs, options = self._evaluation(x, t, conditioning)
        return self._estimate(backend(*inputs, **options), x, alpha, sigma)

    @torch.inference_mode()
    def begin(
        self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning
    ) -> Callable[[], Estimate]:
        """Begin what `denoise` does, in the background if the backend can, and return a function that waits for it."""
        backend, inputs, options = self._evaluation(x, t, conditioning)
        output = backend.begin(*inputs, **options)
        return lambda: self._estimate(output(), x, alpha, sigma)

    def _evaluation(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> tuple[Any, list[Any], dict[str, Any]]:
        """What evaluates the U-Net, and with which inputs. ControlNets are evaluated here."""
        tensors = conditioning.to(self.device)
        context, added = tensors[CONTEXT], {name: tensors[name] for name in self.added_inputs}
        inputs = [self._seen(x, tensors), t, context]
        if self._adapters is None:
            return self.backend, inputs, added
        controls = [[each.of_row() for each in own] for own in conditioning.row_controls]
        # They see the latents alone, whatever the U-Net sees next to them.
        residuals = evaluate_controls(controls, x, t, context, added)
        loras = self._adapters.library.rows(conditioning[LORA_WEIGHTS])
        return self._adapters.backend, [loras, *inputs], {**added, "residuals": residuals}

    def _seen(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        """(B, C + E, H, W) what the U-Net sees: the latents, and the picture next to them if it takes one."""
        if self.card.pictures not in (EDIT, INPAINT):
            return x
        return torch.cat([x, conditioning[PICTURE]], dim=1)

    def _size_ids(self, request: ConditioningRequest) -> tuple[float, ...]:
        """SDXL's: height and width of the original, top and left of the crop, height and width of the target."""
        size = float(request.height or self.card.height), float(request.width or self.card.width)
        return (*size, 0.0, 0.0, *size)  # nothing is cropped, and the target is the original

    def decode(self, x0: Tensor) -> Pictures:
        """Latents x_0 (B, C, h, w) → pictures (B, H, W, channels), by the autoencoder. Takes long."""
        return self._pictures.decode(x0)

    def encode_pictures(self, pictures: Pictures) -> Tensor:
        """Pictures (B, H, W, channels) → latents x_0 (B, C, h, w), by the autoencoder."""
        return self._pictures.encode(pictures)

    def evaluation_bytes(self, height: int, width: int) -> int:
        """See `EvaluationMemory`."""
        return self._memory.row_bytes(height, width)

    def decode_limit(self, shape: tuple[int, int, int]) -> int:
        """See `LatentPictures.limit`."""
        return self._pictures.limit(*shape[1:])

    def preview(self, x0: Tensor) -> Pictures:
        """Latents x̂_0 (B, C, h, w) → pictures (B, h, w, 3), by a linear map."""
        return self._pictures.preview(x0)

    def _estimate(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        # A network with a learned variance has C more channels, which no text model here uses.
        return estimate_from_output(output[:, : x.shape[1]], x, alpha, sigma, self.prediction_type)
