"""The engine: one turn = one network evaluation for everybody in the running batch.

It knows no sampler (plans are tables), no queue and no picture: it gathers one row a
trajectory, evaluates, and applies all the small matrices at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.guidance import apply_guidance
from denoised.model.diffusion.plans import advance, apply_learned_variance
from denoised.model.diffusion.predictions import Estimate
from denoised.worker.engine.batch import RunningBatch
from denoised.worker.engine.group import Group, Rows, Table
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.errors import TrajectoryError

AT_ONCE = 2  # turns that are on their way where that may be more than one


class Denoiser(Protocol):
    """The part of a served model that the engine calls."""

    device: torch.device
    clipping: Clipping
    prediction_type: str

    @property
    def flies_from(self) -> int | None: ...

    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditions: Tensor) -> Estimate: ...

    def begin(
        self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditions: Tensor
    ) -> Callable[[], Estimate]: ...


class Advanced(NamedTuple):
    """A trajectory after one row of its plan: what the network saw and believed.

    row, registers: where the trajectory is now; it goes on while others look at this. final: its registers' first
    when that was its last row.
    """

    trajectory: Trajectory
    row: int
    registers: Tensor
    seen: Tensor
    believed: Tensor
    final: Tensor | None

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.trajectory.plan.step[self.row - 1]

    @property
    def completed(self) -> bool:
        """Whether a step is done with it; a two-stage solver's first row completes none."""
        return self.trajectory.plan.completes_step(self.row - 1)

    @property
    def t(self) -> float:
        """The level that the network saw."""
        return float(self.trajectory.plan.t[self.row - 1])

    @property
    def sigma(self) -> float:
        """The same, as σ."""
        return float(self.trajectory.plan.sigma[self.row - 1])


@dataclass(frozen=True)
class Turn:
    """What one evaluation brought. rows: its batch size, guidance counted as two; halved: it was made in parts, since
    the whole of it failed; beside: the rows of the evaluation that went on when it was done; lanes: images that it
    might have held; seconds: from its beginning to its end.
    """

    rows: int = 0
    advanced: list[Advanced] = field(default_factory=list)
    failed: list[tuple[Trajectory, TrajectoryError]] = field(default_factory=list)
    halved: bool = False
    beside: int = 0
    lanes: int = 0
    seconds: float = 0.0

    @property
    def batch(self) -> int:
        """Rows that the network was at."""
        return self.rows + self.beside


@dataclass(frozen=True)
class PendingEvaluation:
    """An evaluation that has begun. registers: (B, R, …) of its group then; known: waits for what the network says."""

    group: Group
    registers: Tensor
    rows: Rows
    known: Callable[[], Estimate]


@dataclass(frozen=True)
class InFlightStep:
    """A turn that is not over. began: by `time.perf_counter`; flight: or why there is none."""

    members: Sequence[Trajectory]
    lanes: int
    began: float
    flight: PendingEvaluation | Exception

    @property
    def rows(self) -> int:
        return _rows(self.flight)


class Engine:
    """Drives the running batch. Not thread-safe: one thread owns it.

    Of a model that flies, two turns of half the batch each are on their way at any time: while one of them is worked
    on here, and the world is told of it, the network is at the other. flying: whether that is wanted.
    """

    def __init__(self, models: Mapping[str, Denoiser], lanes: int, *, flying: bool = True) -> None:
        self.models = models
        fewest = {name: model.flies_from for name, model in models.items() if flying}
        flies = {name: count for name, count in fewest.items() if count is not None}
        self.batch: RunningBatch[Trajectory] = RunningBatch(lanes, flies)
        self._tables: dict[str, Table] = {}  # by model
        self._groups: dict[str, deque[Group]] = {}  # of each model's last turns
        self._begun: deque[InFlightStep] = deque()

    @torch.inference_mode()
    def step(self) -> Turn:
        """Choose, evaluate, advance, retire."""
        self._begin_turns()
        if not self._begun:
            return Turn()
        begun = self._begun.popleft()
        turn = self._outcome(begun.flight, self.batch.land(begun.members))
        for trajectory, _ in turn.failed:
            self.batch.evict(trajectory.job)
        self.batch.retire()
        if not len(self.batch):
            self._groups.clear()  # nothing is kept of those who have left
        beside, seconds = sum(other.rows for other in self._begun), time.perf_counter() - begun.began
        return replace(turn, beside=beside, lanes=begun.lanes, seconds=seconds)

    def _begin_turns(self) -> None:
        """One turn, and a second where two may be on their way: not beside one of which nobody is here any more."""
        while len(self._begun) < AT_ONCE and (not self._begun or self.batch.away):
            began = time.perf_counter()
            members = self.batch.choose()
            if not members:
                return
            flight = self._try_to_begin(members, beside=self.batch.away)
            self._begun.append(InFlightStep(members, self.batch.turn_lanes, began, flight))

    def _try_to_begin(self, members: Sequence[Trajectory], *, beside: bool) -> PendingEvaluation | Exception:
        try:
            return self._begin(members, beside)
        except Exception as error:
            return error.with_traceback(None)  # whose frames hold what memory there is

    def _begin(self, members: Sequence[Trajectory], beside: bool) -> PendingEvaluation:
        """Have the network begin with everybody's row. beside: while it is at another turn, or we are; else it is all
        that is to be done, and made at once.
        """
        model = self.models[members[0].model]
        group = self._group(members, model.device)
        registers, rows = group.stacked(), group.rows()
        x, level = registers[:, 0], rows.level
        if group.guided is not None:
            x, level = x[group.guided.order], level.of(group.guided.order)
        evaluation = x, level.t, level.alpha, level.sigma, group.conditions
        if beside:
            return PendingEvaluation(group, registers, rows, model.begin(*evaluation))
        known = model.denoise(*evaluation)
        return PendingEvaluation(group, registers, rows, lambda: known)

    def _group(self, members: Sequence[Trajectory], device: torch.device) -> Group:
        """These members; the group of one of the model's last turns where they are the same."""
        name = members[0].model
        last = self._groups.setdefault(name, deque(maxlen=AT_ONCE))
        for group in last:
            if group.is_of(members):
                return group
        last.append(Group(members, self._tables.setdefault(name, Table(device)), device))
        return last[-1]

    def _outcome(self, flight: PendingEvaluation | Exception, here: Sequence[Trajectory]) -> Turn:
        """Advance those of a turn who are still here by one row; when that fails, its halves, so that only the guilty
        do."""
        if not here:
            return Turn(_rows(flight))
        if isinstance(flight, Exception):
            error = flight
        else:
            try:
                return self._advance(flight, here)
            except Exception as raised:
                error = raised.with_traceback(None)
        if len(here) == 1:
            return Turn(failed=[(here[0], _diagnosed(error))])
        middle = len(here) // 2
        left, right = (
            self._outcome(self._try_to_begin(half, beside=False), half) for half in (here[:middle], here[middle:])
        )
        failed = left.failed + right.failed
        return Turn(left.rows + right.rows, advanced=left.advanced + right.advanced, failed=failed, halved=True)

    def _advance(self, flight: PendingEvaluation, here: Sequence[Trajectory]) -> Turn:
        group, rows, level = flight.group, flight.rows, flight.rows.level
        seen = flight.registers[:, 0]
        model = self.models[group.members[0].model]
        estimate = self._estimate(model, flight)
        estimate = model.clipping(estimate, seen, level.alpha, level.sigma, group.is_guided)
        z = group.drawn(seen)
        if estimate.variance_output is not None:
            z = apply_learned_variance(z, estimate.variance_output, rows.log_variance_range)
        registers = advance(flight.registers, estimate, z, rows.matrices)
        # Of the largest: to ask that of everything takes six times as long.
        sound = registers.flatten(1).abs().amax(dim=1).isfinite().tolist()
        turn, still = Turn(len(group.conditions)), set(map(id, here))
        images = zip(group.members, sound, group.parted(registers), seen.unbind(0), estimate.x0.unbind(0), strict=True)
        for trajectory, finite, own, saw, believed in images:
            if id(trajectory) not in still:
                continue
            if finite:
                turn.advanced.append(_advanced(trajectory, own, saw, believed))
            else:
                text = f"the network's output is not finite at step {trajectory.row + 1}"
                turn.failed.append((trajectory, TrajectoryError("nan_output", text)))
        return turn

    def _estimate(self, model: Denoiser, flight: PendingEvaluation) -> Estimate:
        """(x̂_0, ε̂) of every member, guidance merged."""
        known, guided = flight.known(), flight.group.guided
        if guided is None:
            return known
        x = flight.registers[:, 0]
        estimate, without = known.split(len(x))
        there = flight.rows.level.of(guided.index)
        merged = apply_guidance(
            estimate.select(guided.index),
            without,
            x[guided.index],
            there.alpha,
            there.sigma,
            model.prediction_type,
            guided.scale,
            guided.rescale,
        )
        return estimate.replace(guided.index, merged)


def _rows(flight: PendingEvaluation | Exception) -> int:
    """Of the evaluation, if it has begun."""
    return len(flight.group.conditions) if isinstance(flight, PendingEvaluation) else 0


def _advanced(trajectory: Trajectory, registers: Tensor, seen: Tensor, believed: Tensor) -> Advanced:
    trajectory.advance(registers)
    final = registers[0] if trajectory.finished else None
    return Advanced(trajectory, trajectory.row, trajectory.registers, seen, believed, final)


def _diagnosed(error: Exception) -> TrajectoryError:
    """A name for what a lone trajectory's evaluation raised."""
    if isinstance(error, TrajectoryError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return TrajectoryError("out_of_memory", "the device has not enough memory for one image of this model")
    return TrajectoryError("evaluation_failed", f"{type(error).__name__}: {error}")
