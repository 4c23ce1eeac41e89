"""One image on its way from noise to picture. A trajectory is the truth; the batch is a view of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.jobs.record import JobRecord
from denoised.model.diffusion.plans import Plan
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import initial_noise
from denoised.worker.engine.resume import ResumePoint, check


@dataclass(eq=False)
class Trajectory:
    """State between two evaluations.

    registers: (R, …) x and what the plan holds beside it; conditions: what `denoise` is told
    with and without the label; row: the plan's next row. Knows neither what a condition
    holds nor what shape is denoised.
    """

    job: str
    index: int
    model: str
    plan: Plan
    condition: Tensor
    unconditional: Tensor
    guidance_scale: float
    guidance_rescale: float
    generator: torch.Generator
    registers: Tensor
    row: int = 0
    _drawn: Tensor | None = None

    @classmethod
    def begin(
        cls,
        *,
        job: str,
        index: int,
        model: str,
        plan: Plan,
        condition: Tensor,
        unconditional: Tensor,
        guidance_scale: float,
        seed: int,
        shape: tuple[int, ...],
        device: torch.device,
        guidance_rescale: float = 0.0,
    ) -> Trajectory:
        """At x_T, the first draw of the image's own generator."""
        generator = torch.Generator().manual_seed(seed)
        registers = torch.zeros(plan.registers, *shape)
        registers[0] = plan.initial_scale * initial_noise(generator, shape)
        return cls(
            job,
            index,
            model,
            plan,
            condition,
            unconditional,
            guidance_scale,
            guidance_rescale,
            generator,
            registers.to(device),
        )

    def resume(self, saved: ResumePoint) -> None:
        """Go to where another attempt was: its registers, and past the draws that it had taken.

        Raises:
            ResumeError: when it was saved under another plan or shape.
        """
        shape = tuple(self.registers.shape[1:])
        check(saved, self.plan, shape)
        for row in range(saved.row):
            if self.plan.draws_noise(row):
                initial_noise(self.generator, shape)
        self.registers = saved.registers.to(self.registers.device)
        self.row = saved.row

    @property
    def finished(self) -> bool:
        return self.row == self.plan.evaluations

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    @property
    def pending_evaluations(self) -> int:
        """Network calls to go, guidance counted as two."""
        return (self.plan.evaluations - self.row) * (2 if self.guided else 1)

    @property
    def draws(self) -> bool:
        """Whether its row takes fresh noise."""
        return self.plan.draws_noise(self.row)

    def draw(self) -> Tensor:
        """z of the current row: the generator's next draw, or zeros where the row takes none.

        Asked again for the same row (a batch that failed is tried again in halves), it gives
        the same draw.
        """
        if self._drawn is None:
            shape = tuple(self.registers.shape[1:])
            self._drawn = initial_noise(self.generator, shape) if self.draws else torch.zeros(shape)
        return self._drawn

    def advance(self, registers: Tensor) -> None:
        """Take the row's outcome and go to the next row."""
        self.registers = registers
        self.row += 1
        self._drawn = None


def trajectories(
    record: JobRecord, model: PixelModel, saved: Mapping[int, ResumePoint] | None = None
) -> list[Trajectory]:
    """One trajectory for each image of a job that is not made yet, where it was saved or at its x_T.

    Raises:
        PlanError: when the request asks for a plan that this model cannot make.
        ResumeError: when it was saved under another plan or shape.
    """
    made = {image.index for image in record.images}
    begun = [trajectory for trajectory in _begun(record, model) if trajectory.index not in made]
    for trajectory in begun:
        if saved and trajectory.index in saved:
            trajectory.resume(saved[trajectory.index])
    return begun


def _begun(record: JobRecord, model: PixelModel) -> list[Trajectory]:
    request = record.request
    plan = model.plan(request.sampler, request.steps, request.eta, request.spacing, request.karras)
    return [
        Trajectory.begin(
            job=record.id,
            index=index,
            model=request.model,
            plan=plan,
            condition=model.condition(request.label),
            unconditional=model.condition(None if request.guidance_scale != 1.0 else request.label),
            guidance_scale=request.guidance_scale,
            guidance_rescale=request.guidance_rescale,
            seed=request.seed + index,
            shape=model.shape,
            device=model.device,
        )
        for index in range(request.n)
    ]
