"""What the images of a job begin with, and their plan, by the job's task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.task_request import ARRAY
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.likelihood_plan import dequantization_noise, initial_registers, likelihood_plan
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.single_level import SingleLevel, estimate_plan, no_evaluations
from denoised.model.errors import PlanError
from denoised.model.serving.protocol import Picture, ServedModel
from denoised.worker.engine.conditioning_requests import conditioning_requests
from denoised.worker.engine.start_picture import InputPictures, StartPicture


class Start(Protocol):
    """What an image begins with."""

    @property
    def kept(self) -> Tensor | None:
        """(1, h, w) bool, the part of a picture that is restored after each row; None: nothing."""
        ...

    def begin(self, plan: Plan, noise: Tensor) -> Tensor:
        """The first registers (k, C, h, w) at the first row of a plan. noise: the seed's unit noise (C, h, w)."""
        ...

    def restore(self, x: Tensor, plan: Plan, row: int, noise: Tensor) -> Tensor:
        """x (C, h, w) with the kept part as it was at a row."""
        ...


@dataclass(frozen=True, eq=False)
class _Measured:
    """A picture that something is computed from. x0: (C, h, w)."""

    x0: Tensor

    @property
    def kept(self) -> None:
        return None

    def restore(self, x: Tensor, plan: Plan, row: int, noise: Tensor) -> Tensor:
        return x


@dataclass(frozen=True, eq=False)
class LevelPicture(_Measured):
    """A picture at one noise level: x_t = α·x_0 + σ·ε, or as it is."""

    level: SingleLevel
    adds_noise: bool

    def begin(self, plan: Plan, noise: Tensor) -> Tensor:
        if not self.adds_noise:
            return self.x0[None]
        return (self.level.alpha * self.x0 + self.level.sigma * noise)[None]


@dataclass(frozen=True, eq=False)
class LikelihoodStart(_Measured):
    """A picture whose likelihood is estimated. seed: of the random signs."""

    model: ServedModel
    steps: int
    seed: int

    def begin(self, plan: Plan, noise: Tensor) -> Tensor:
        return initial_registers(self.x0, self.model.schedule, self.steps, self.seed)


def plan_of(request: SamplingRequest, model: ServedModel) -> Plan:
    """The plan of a request.

    Raises:
        PlanError: if the model does not offer it.
    """
    if request.task == "generate":
        return model.plan(request.sampler, request.steps, request.eta, _level_choice(request))
    if request.task == "likelihood":
        return likelihood_plan(model.schedule, request.steps)
    level = level_of(request, model)
    return estimate_plan(level) if request.task == "score" else no_evaluations(level)


def level_of(request: SamplingRequest, model: ServedModel) -> SingleLevel:
    """The noise level of a request for noise or a score.

    Raises:
        PlanError: for a level that the model does not have, or none.
    """
    last = model.schedule.timesteps - 1
    if request.t is not None and 0 <= request.t <= last:
        return SingleLevel.of_time(model.schedule, request.t)
    if request.t is None and request.sigma is not None and request.sigma > 0:
        return SingleLevel.of_ratio(model.schedule, request.sigma)
    raise PlanError(f"t = {request.t} and sigma = {request.sigma} (allowed: t in 0 … {last}, or sigma over 0)")


def starts_of(request: SamplingRequest, model: ServedModel, pictures: InputPictures) -> Sequence[Start | None]:
    """What each image of a request begins with; None: noise alone.

    pictures: those that the request names.
    """
    if request.task == "generate":
        return [StartPicture.of(request, model, pictures)] * request.n
    if request.task == "likelihood":
        seeds = range(request.seed, request.seed + request.n)
        picture, steps = pictures["image"], request.steps
        return [LikelihoodStart(_dequantized(picture, model, seed), model, steps, seed) for seed in seeds]
    if ARRAY in pictures:
        return [LevelPicture(_point(pictures[ARRAY], request, model), level_of(request, model), adds_noise=False)]
    x0 = model.encode_pictures(pictures["image"][None])[0].to(model.device)
    return [LevelPicture(x0, level_of(request, model), request.adds_noise)] * request.n


def _point(numbers: npt.NDArray[np.float32], request: SamplingRequest, model: ServedModel) -> Tensor:
    """x_t (C, h, w) of a request.

    Raises:
        PlanError: for another count of numbers, or numbers that are not finite.
    """
    shape = model.shape_of(conditioning_requests(request)[0])
    if numbers.size != math.prod(shape) or not np.isfinite(numbers).all():
        raise PlanError(f"{ARRAY} has {numbers.size} numbers (allowed: {math.prod(shape)} finite ones, {shape})")
    return torch.from_numpy(numbers.copy()).view(shape).to(model.device)


def _dequantized(picture: Picture, model: ServedModel, seed: int) -> Tensor:
    """x_0 (C, h, w) of a picture; that of pixels with uniform noise of the width of a byte value, whose density bounds
    the probability of the bytes from below (Theis et al. 2016, arXiv:1511.01844, section 3.1)."""
    if model.card.latent is not None:
        return model.encode_pictures(picture[None])[0].to(model.device)
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).double()  # (C, H, W)
    noise = dequantization_noise(pixels.shape, seed).double()
    # Bytes and noise in [−½, 255½) → [−1, 1] and half a step beyond.
    return ((pixels + noise) / 127.5 - 1).float().to(model.device)


def _level_choice(request: SamplingRequest) -> LevelChoice:
    sigmas = None if request.sigmas is None else tuple(request.sigmas)
    skipped = request.steps - request.run_steps
    return LevelChoice(request.spacing, request.karras, request.sigma_min, request.sigma_max, sigmas, skipped)
