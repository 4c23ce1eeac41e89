"""One image on its way from noise to picture. A trajectory is the truth; the batch is a view of it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import PRIORITIES, SamplingRequest
from denoised.model.diffusion.guidance import is_within
from denoised.model.diffusion.plans import Plan
from denoised.model.serving.conditioning import Conditioning
from denoised.model.serving.protocol import ServedModel
from denoised.model.serving.sampling import initial_noise, mix_noise
from denoised.worker.engine.conditioning_requests import conditioning_requests
from denoised.worker.engine.fair_slots import ANONYMOUS, Caller
from denoised.worker.engine.resume import ResumePoint, check
from denoised.worker.engine.start_picture import InputPictures
from denoised.worker.engine.task_start import Start, plan_of, starts_of

NO_PICTURES: InputPictures = {}


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of one image.

    Attributes:
        others: What the network is conditioned on in the further rows of each evaluation: a batch of one, the
            unconditional row, or of two, the row with the input image alone and then the unconditional one.
        scale: s in uncond + s·(cond − uncond), or s_text of two guidances (`diffusion.guidance.guide_twice`).
        rescale: φ in 0 … 1, how far the contrast that guidance adds is undone.
        interval: The noise levels ρ at which it applies, (low, high]; None: all.
        image_scale: s_image of two guidances; None with one.
    """

    others: Conditioning
    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    image_scale: float | None = None

    @classmethod
    def of(cls, request: SamplingRequest, others: Conditioning) -> Guidance:
        """The guidance of a request. others: see the attribute."""
        interval = None if request.guidance_interval is None else tuple(request.guidance_interval)
        image_scale = request.image_guidance_scale
        assert len(others) == request.rows_per_evaluation - 1
        return cls(others, request.guidance_scale, request.guidance_rescale, interval, image_scale)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Seeds:
    """What an image's noise is drawn from.

    Attributes:
        seed: Of the image's generator.
        other: The seed whose first noise is mixed in, if there is one.
        mix: How much of it, 0 … 1.
    """

    seed: int
    other: int | None = None
    mix: float = 0.0

    def begin(self, shape: tuple[int, ...]) -> tuple[torch.Generator, Tensor]:
        """The image's generator after its first draw, and the first noise."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = initial_noise(generator, shape)
        if self.other is None:
            return generator, noise
        return generator, mix_noise(noise, initial_noise(torch.Generator().manual_seed(self.other), shape), self.mix)


@dataclass(eq=False)
class Trajectory:
    """The state of one image between two evaluations.

    It knows neither what a conditioning holds nor what shape is denoised.

    Attributes:
        job, index: The job, and the image's index in it.
        model: The model's name.
        plan: The compiled sampler.
        conditioning: What the image is conditioned on; a batch of one.
        guidance: None if the image is not guided.
        generator: Draws the image's noise.
        registers: (R, …) float32, x first, then what else the plan keeps between evaluations.
        picture: What it starts from; None: noise alone.
        noise: The first draw of the generator, if a part of the picture is kept; else None.
        row: The plan's next row.
        caller: Whose job it is of.
    """

    job: str
    index: int
    model: str
    plan: Plan
    conditioning: Conditioning
    guidance: Guidance | None
    generator: torch.Generator
    registers: Tensor
    picture: Start | None = None
    noise: Tensor | None = None
    row: int = 0
    caller: Caller = ANONYMOUS
    _drawn: Tensor | None = None

    @classmethod
    def begin(
        cls,
        *,
        job: str,
        index: int,
        model: str,
        plan: Plan,
        conditioning: Conditioning,
        seeds: Seeds,
        shape: tuple[int, ...],
        device: torch.device,
        guidance: Guidance | None = None,
        picture: Start | None = None,
        caller: Caller = ANONYMOUS,
    ) -> Trajectory:
        """A trajectory at x_T, the first draw of the image's own generator, or at a picture with that noise."""
        generator, noise = seeds.begin(shape)
        registers = torch.zeros(plan.registers, *shape)
        registers[0] = plan.initial_scale * noise
        registers, noise = registers.to(device), noise.to(device)
        if picture is not None:
            first = picture.begin(plan, noise)
            registers[: len(first)] = first
        kept_noise = noise if picture is not None and picture.kept is not None else None
        start = (registers, picture, kept_noise)
        return cls(job, index, model, plan, conditioning, guidance, generator, *start, caller=caller)

    def resume(self, saved: ResumePoint) -> None:
        """Continue where another attempt was: take over its registers, and skip the draws that it had taken.

        Raises:
            ResumeError: if it was saved under another plan or shape.
        """
        shape = tuple(self.registers.shape[1:])
        check(saved, self.plan, shape)
        for row in range(saved.row):
            if self.plan.draws_noise(row):
                initial_noise(self.generator, shape)
        self.registers = saved.registers.to(self.registers.device)
        self.row = saved.row

    @cached_property
    def batch_key(self) -> Hashable:
        """Trajectories of equal keys fit into one evaluation: those of one model with tensors of equal shapes."""
        return self.model, tuple(self.registers.shape[1:]), self.conditioning.shapes

    @property
    def finished(self) -> bool:
        """Whether no row of the plan is left."""
        return self.row == self.plan.evaluations

    @property
    def guided(self) -> bool:
        """Whether guidance is on at its row."""
        return self.guidance is not None and not self.finished and self.evaluations_of(self.row) > 1

    @property
    def applying(self) -> tuple[bool, ...]:
        """Whether each of the ControlNets that it is conditioned on applies to its row."""
        return self.conditioning.applying(self.row, self.plan.evaluations)

    def now(self, conditioning: Conditioning) -> Conditioning:
        """A conditioning of its own as it is at its row."""
        return conditioning.at(self.row, self.plan.evaluations)

    @property
    def rows(self) -> int:
        """Of the network's batch that its next evaluation takes; 0 when it is finished."""
        return 0 if self.finished else self.evaluations_of(self.row)

    def evaluations_of(self, row: int) -> int:
        """How many rows of the network's batch the image takes at a row of its plan: two with guidance, three with
        two guidances, one outside their interval."""
        return self._pending[row] - self._pending[row + 1]

    @property
    def pending_evaluations(self) -> int:
        """Network evaluations until it is finished, see `evaluations_of`."""
        return self._pending[self.row]

    @property
    def total_evaluations(self) -> int:
        """Network evaluations from x_T to the end."""
        return self._pending[0]

    @property
    def completed_evaluations(self) -> int:
        """Network evaluations from x_T to its row."""
        return self.total_evaluations - self.pending_evaluations

    @cached_property
    def _pending(self) -> list[int]:
        """The evaluations from each row to the end, and 0 at the end."""
        pending = [0]
        for row in reversed(range(self.plan.evaluations)):
            pending.append(pending[-1] + 1)
            if self.guidance is not None and is_within(self.plan.ratio(row), self.guidance.interval):
                pending[-1] += len(self.guidance.others)
        return pending[::-1]

    @property
    def draws(self) -> bool:
        """Whether its row takes fresh noise."""
        return self.plan.draws_noise(self.row)

    def draw(self) -> Tensor:
        """z (…) of the current row: the generator's next draw, or zeros if the row takes none.

        Called again for the same row, because a failed batch is repeated in halves, it returns the same draw.
        """
        if self._drawn is None:
            shape = tuple(self.registers.shape[1:])
            self._drawn = initial_noise(self.generator, shape) if self.draws else torch.zeros(shape)
        return self._drawn

    def advance(self, registers: Tensor) -> None:
        """Store the outcome of the current row and go to the next one. What is kept of the picture is restored."""
        self.row += 1
        if self.picture is not None and self.noise is not None:
            registers = registers.clone()  # a view of the whole batch
            registers[0] = self.picture.restore(registers[0], self.plan, self.row, self.noise)
        self.registers = registers
        self._drawn = None


def trajectories(
    record: JobRecord,
    model: ServedModel,
    saved: Mapping[int, ResumePoint] | None = None,
    pictures: InputPictures = NO_PICTURES,
) -> list[Trajectory]:
    """One trajectory for each unfinished image of a job, at its resume point or at its beginning.

    pictures: those that the request names.

    Raises:
        PlanError: if the request asks for a plan or a conditioning that this model does not offer.
        ResumeError: if a resume point was saved under another plan or shape.
    """
    finished = {image.index for image in record.images}
    begun = [trajectory for trajectory in _begin_all(record, model, pictures) if trajectory.index not in finished]
    for trajectory in begun:
        if saved and trajectory.index in saved:
            trajectory.resume(saved[trajectory.index])
    return begun


def _begin_all(record: JobRecord, model: ServedModel, pictures: InputPictures) -> list[Trajectory]:
    request = record.request
    plan = plan_of(request, model)
    asked = conditioning_requests(request)
    rows = model.with_pictures(model.encode(asked), asked, pictures)
    conditioning, others = rows.select(slice(0, 1)), rows.select(slice(1, None))
    guidance = Guidance.of(request, others) if len(asked) > 1 else None
    starts = starts_of(request, model, pictures)
    return [
        Trajectory.begin(
            job=record.id,
            index=index,
            model=request.model,
            plan=plan,
            conditioning=conditioning,
            guidance=guidance,
            seeds=Seeds(request.seed + index, request.seed_to, request.mix),
            shape=model.shape_of(asked[0]),
            device=model.device,
            picture=starts[index],
            caller=Caller(record.owner, record.weight, PRIORITIES.index(request.priority)),
        )
        for index in range(request.n)
    ]
