"""`FakeModel`: a served model of a few exact operations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.level_choice import MODELS_OWN, LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.predictions import Estimate, x0_from_epsilon
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.serving.card import ModelCard
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.protocol import Picture, Pictures
from tests.harness import LABELS

SCHEDULE = NoiseSchedule.from_name("linear")


class FakeModel:
    """A `ServedModel` that computes with elementwise products and sums alone.

    The outcome of each row depends on that row only, to the last bit.

    Attributes:
        calls: The labels of each evaluation.
        row_bytes: See `ServedModel.evaluation_bytes`.
        prepared: The number of requests in each call of `prepare`.
        seconds: The duration of one evaluation.
        limit: Where x̂_0 is clipped.
        nan_class: The class whose rows come out as NaN.
        failing_class: The class that makes the whole evaluation raise `error`.
        min_pipelined_images: See `ServedModel`.
    """

    min_pipelined_images: int | None = None
    schedule = SCHEDULE

    def __init__(
        self,
        name: str = "fake",
        *,
        shape: tuple[int, int, int] = (1, 4, 4),
        seconds: float = 0.0,
        limit: float | None = 1.0,
        variance_type: str = "fixed_small",
        nan_class: int | None = None,
        failing_class: int | None = None,
        error: Exception | None = None,
    ) -> None:
        self.shape = shape
        self.device = torch.device("cpu")
        self.clipping = Clipping(limit)
        self.prediction_type = "epsilon"
        self.variance_type = variance_type
        self.card = ModelCard(
            name=name,
            width=shape[2],
            height=shape[1],
            channels=shape[0],
            labels=LABELS,
            pictures="start",
            timesteps=SCHEDULE.timesteps,
            prediction_type="epsilon",
            samplers=list(SAMPLERS),
            eta_samplers=["ddim"],
            default={"sampler": "ddim", "steps": 5, "guidance_scale": 1.0},  # type: ignore[arg-type]
            max_images=16,
            numerics="fake",
        )
        self.row_bytes = 0
        self.calls: list[list[int]] = []
        self.prepared: list[int] = []
        self._seconds = seconds
        self._nan_class = nan_class
        self._failing_class = failing_class
        self._error = error or RuntimeError("this class fails")

    def plan(self, sampler: str, steps: int, eta: float, levels: LevelChoice = MODELS_OWN) -> Plan:
        grid = levels.of(Grid("leading", variance_type=self.variance_type))
        return compile_plan(sampler, SCHEDULE, steps, grid, eta, levels.skipped_steps)

    def shape_of(self, request: ConditioningRequest) -> tuple[int, int, int]:
        return self.shape

    def encode(self, requests: Sequence[ConditioningRequest]) -> Conditioning:
        labels = [len(LABELS) if request.label is None else request.label for request in requests]
        return Conditioning({"label": torch.tensor(labels)})

    def with_pictures(
        self, conditioning: Conditioning, requests: Sequence[ConditioningRequest], pictures: Mapping[str, Picture]
    ) -> Conditioning:
        return conditioning

    def prepare(self, requests: Sequence[ConditioningRequest]) -> None:
        self.prepared.append(len(requests))

    def begin(
        self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning
    ) -> Callable[[], Estimate]:
        """Like a pipelined network: it works, and fails, while the caller waits for it."""
        return lambda: self.denoise(x, t, alpha, sigma, conditioning)

    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
        time.sleep(self._seconds)
        labels = conditioning["label"]
        self.calls.append(labels.tolist())
        if self._failing_class in self.calls[-1]:
            raise self._error
        shift = labels.to(x.dtype) * 0.25 - t * 0.0005
        epsilon = x * 0.75 + shift.view(-1, 1, 1, 1)
        if self._nan_class is not None:
            epsilon[labels == self._nan_class] = float("nan")
        variance_output = x * 0.25 if self.variance_type == "learned_range" else None
        return Estimate(x0_from_epsilon(x, epsilon, alpha, sigma), epsilon, variance_output)

    def decode(self, x0: Tensor) -> Pictures:
        pixels = ((x0 / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).numpy()

    def evaluation_bytes(self, height: int, width: int) -> int:
        return self.row_bytes

    def decode_limit(self, shape: tuple[int, int, int]) -> int:
        return 16

    def encode_pictures(self, pictures: Pictures) -> Tensor:
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1

    def preview(self, x0: Tensor) -> Pictures:
        return self.decode(x0)
