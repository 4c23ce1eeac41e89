"""The engine: one turn = one network evaluation for everybody in the running batch.

It knows no sampler (plans are tables), no queue and no picture: it gathers one row a
trajectory, evaluates, and applies all the small matrices at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.denoiser import Clipping
from model.guidance import merge
from model.noise import Estimate
from model.plans import advance, spread_noise
from worker.batch import RunningBatch
from worker.errors import TrajectoryError
from worker.group import Group, Level, Table
from worker.trajectory import Trajectory


class Denoiser(Protocol):
    """The part of a served model that the engine calls."""

    device: torch.device
    clipping: Clipping
    prediction_type: str

    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditions: Tensor) -> Estimate: ...


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
        return self.trajectory.plan.completes(self.row - 1)

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
    """What one evaluation brought. rows: its batch size, guidance counted as two; halved: it was made in parts,
    since the whole of it failed.
    """

    rows: int = 0
    advanced: list[Advanced] = field(default_factory=list)
    failed: list[tuple[Trajectory, TrajectoryError]] = field(default_factory=list)
    halved: bool = False


class Engine:
    """Drives the running batch. Not thread-safe: one thread owns it."""

    def __init__(self, models: Mapping[str, Denoiser], lanes: int) -> None:
        self.models = models
        self.batch: RunningBatch[Trajectory] = RunningBatch(lanes)
        self._tables: dict[str, Table] = {}  # by model
        self._groups: dict[str, Group] = {}  # of each model's last turn

    @torch.inference_mode()
    def step(self) -> Turn:
        """Choose, evaluate, advance, retire."""
        members = self.batch.choose()
        if not members:
            return Turn()
        turn = self._evaluate(members)
        for trajectory, _ in turn.failed:
            self.batch.evict(trajectory.job)
        self.batch.retire()
        if not len(self.batch):
            self._groups.clear()  # nothing is kept of those who have left
        return turn

    def _evaluate(self, members: Sequence[Trajectory]) -> Turn:
        """Advance a group by one row; when that raises, its halves, so that only the guilty fail."""
        try:
            return self._advance(members)
        except Exception as error:
            if len(members) == 1:
                return Turn(failed=[(members[0], _diagnosed(error))])
        middle = len(members) // 2
        left, right = self._evaluate(members[:middle]), self._evaluate(members[middle:])
        return Turn(left.rows + right.rows, left.advanced + right.advanced, left.failed + right.failed, halved=True)

    def _advance(self, members: Sequence[Trajectory]) -> Turn:
        model = self.models[members[0].model]
        group = self._group(members, model.device)
        registers = group.stacked()  # (B, R, …)
        seen, rows = registers[:, 0], group.rows()
        level = rows.level
        estimate = self._estimate(model, group, seen, level)
        estimate = model.clipping(estimate, seen, level.alpha, level.sigma, group.is_guided)
        z = group.drawn(seen)
        if estimate.share is not None:
            z = spread_noise(z, estimate.share, rows.spread)
        registers = advance(registers, estimate, z, rows.matrices)
        # Of the largest: to ask that of everything takes six times as long.
        sound = registers.flatten(1).abs().amax(dim=1).isfinite().tolist()
        turn = Turn(len(group.conditions))
        images = zip(members, sound, group.parted(registers), seen.unbind(0), estimate.x0.unbind(0), strict=True)
        for trajectory, finite, own, saw, believed in images:
            if finite:
                turn.advanced.append(_advanced(trajectory, own, saw, believed))
            else:
                text = f"the network's output is not finite at step {trajectory.row + 1}"
                turn.failed.append((trajectory, TrajectoryError("nan_output", text)))
        return turn

    def _group(self, members: Sequence[Trajectory], device: torch.device) -> Group:
        """These members; the group of the model's last turn where they are the same."""
        name = members[0].model
        group = self._groups.get(name)
        if group is None or not group.is_of(members):
            table = self._tables.setdefault(name, Table(device))
            group = self._groups[name] = Group(members, table, device)
        return group

    def _estimate(self, model: Denoiser, group: Group, x: Tensor, level: Level) -> Estimate:
        """(x̂_0, ε̂) of every member, guidance merged."""
        guided = group.guided
        if guided is None:
            return model.denoise(x, level.t, level.alpha, level.sigma, group.conditions)
        branches = level.of(guided.order)
        both = model.denoise(x[guided.order], branches.t, branches.alpha, branches.sigma, group.conditions)
        estimate, without = both.split(len(x))
        there = level.of(guided.index)
        merged = merge(
            estimate.of(guided.index),
            without,
            x[guided.index],
            there.alpha,
            there.sigma,
            model.prediction_type,
            guided.scale,
            guided.rescale,
        )
        return estimate.with_some(guided.index, merged)


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
