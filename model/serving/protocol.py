"""The protocol of a served model: encode, denoise, decode, preview.

The engine, the trajectories, the resume points and the publisher know a model by this protocol alone. They
know neither what a conditioning holds nor what shape the network works in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.level_choice import MODELS_OWN, LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.predictions import Estimate
from denoised.model.serving.card import ModelCard
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest

Pictures = npt.NDArray[np.uint8]  # (B, H, W, C)
Picture = npt.NDArray[np.uint8]  # (H, W, C)


class ServedModel(Protocol):
    """A model as a worker serves it. Every stage is batched, and every image is independent of its neighbors."""

    @property
    def card(self) -> ModelCard:
        """What the model says about itself."""
        ...

    @property
    def device(self) -> torch.device:
        """Where `denoise` runs."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the tensor that is denoised, pixels or latents, at the model's own image size."""
        ...

    def shape_of(self, request: ConditioningRequest) -> tuple[int, int, int]:
        """(C, H, W) of the tensor that is denoised for a request."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels of its training."""
        ...

    @property
    def clipping(self) -> Clipping:
        """How x̂_0 is clipped after each evaluation."""
        ...

    @property
    def prediction_type(self) -> str:
        """What the network predicts; guidance rescale needs it."""
        ...

    @property
    def min_pipelined_images(self) -> int | None:
        """The fewest images for which two evaluations in flight (`begin`), each of half of them, are faster than one
        evaluation of all; None if they never are."""
        ...

    def plan(self, sampler: str, steps: int, eta: float, levels: LevelChoice = MODELS_OWN) -> Plan:
        """Compile the plan of a request on this model's noise schedule.

        Raises:
            PlanError: for values that the sampler does not offer.
        """
        ...

    def encode(self, requests: Sequence[ConditioningRequest]) -> Conditioning:
        """Encode requests, once per job, into a conditioning with one entry per request.

        The entries of one call have equal shapes, so that a request and its unconditional one fit into one batch.

        Raises:
            PlanError: for a request that the model does not take.
        """
        ...

    def with_pictures(
        self, conditioning: Conditioning, requests: Sequence[ConditioningRequest], pictures: Mapping[str, Picture]
    ) -> Conditioning:
        """Add the pictures of a job to what `encode` has made of its requests, if the network sees them.

        pictures: by request field, each (H, W, C).
        """
        ...

    def prepare(self, requests: Sequence[ConditioningRequest]) -> None:
        """Do the work of `encode` for requests of several jobs together, so that `encode` of each is quick."""
        ...

    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
        """Estimate (x̂_0, ε̂) of x (B, C, H, W) at levels t, α, σ (B,)."""
        ...

    def begin(
        self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning
    ) -> Callable[[], Estimate]:
        """Begin what `denoise` does, and return a function that waits for the result."""
        ...

    def evaluation_bytes(self, height: int, width: int) -> int:
        """About how many bytes an evaluation takes for one row of this height and width, besides the weights."""
        ...

    def decode(self, x0: Tensor) -> Pictures:
        """Decode finished images x_0 (B, C, H, W) into pictures (B, H, W, C). Called off the engine's thread.

        An image's bytes do not depend on the others.
        """
        ...

    def decode_limit(self, shape: tuple[int, int, int]) -> int:
        """How many images x_0 of a shape (C, H, W) one call of `decode` should get, at least 1."""
        ...

    def encode_pictures(self, pictures: Pictures) -> Tensor:
        """Encode pictures (B, H, W, C) into x_0 (B, C, h, w): the inverse of `decode`.

        The result for a picture does not depend on the others.
        """
        ...

    def preview(self, x0: Tensor) -> Pictures:
        """Decode x̂_0 (B, C, H, W) of a step into small pictures (B, h, w, C), cheaply, for frames."""
        ...
