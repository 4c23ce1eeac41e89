"""The engine: one turn = one network evaluation for everybody in the running batch.

It knows no sampler (plans are tables), no queue and no picture: it gathers one row a
trajectory, evaluates, and applies all the small matrices at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.denoiser import Clipping
from model.guidance import merge
from model.noise import Estimate
from model.plans import advance, spread_noise
from worker.batch import RunningBatch
from worker.errors import TrajectoryError
from worker.trajectory import Trajectory


class Denoiser(Protocol):
    """The part of a served model that the engine calls."""

    device: torch.device
    clipping: Clipping
    prediction_type: str

    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditions: Tensor) -> Estimate: ...


@dataclass(frozen=True)
class Level:
    """The noise levels of a batch: t, α, σ, each (B,) float32."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def of(self, members: Sequence[int]) -> Level:
        """Those of some members."""
        return Level(self.t[members], self.alpha[members], self.sigma[members])


@dataclass(frozen=True)
class Advanced:
    """A trajectory after one row of its plan: what the network saw and believed, and the level it saw.

    completed: whether a step is done with it; a two-stage solver's first row completes none. row, registers: where
    the trajectory is now; it goes on while others look at this.
    """

    trajectory: Trajectory
    step: int
    completed: bool
    t: float
    sigma: float
    seen: Tensor
    believed: Tensor
    final: Tensor | None
    row: int
    registers: Tensor


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

    @torch.inference_mode()
    def step(self) -> Turn:
        """Choose, evaluate, advance, retire."""
        group = self.batch.choose()
        if not group:
            return Turn()
        turn = self._evaluate(group)
        for trajectory, _ in turn.failed:
            self.batch.evict(trajectory.job)
        self.batch.retire()
        return turn

    def _evaluate(self, group: Sequence[Trajectory]) -> Turn:
        """Advance a group by one row; when that raises, its halves, so that only the guilty fail."""
        try:
            return self._advance(group)
        except Exception as error:
            if len(group) == 1:
                return Turn(failed=[(group[0], _diagnosed(error))])
        middle = len(group) // 2
        left, right = self._evaluate(group[:middle]), self._evaluate(group[middle:])
        return Turn(left.rows + right.rows, left.advanced + right.advanced, left.failed + right.failed, halved=True)

    def _advance(self, group: Sequence[Trajectory]) -> Turn:
        model = self.models[group[0].model]
        registers = _stacked(group)  # (B, R, …)
        seen = registers[:, 0]
        level = _level(group, model.device)
        estimate, rows = self._estimate(model, group, seen, level)
        guided = torch.tensor([trajectory.guided for trajectory in group], device=model.device)
        estimate = model.clipping(estimate, seen, level.alpha, level.sigma, guided)
        z = _drawn(group, seen)
        if estimate.share is not None:
            z = spread_noise(z, estimate.share, _column(group, "spread", model.device))
        registers = advance(registers, estimate, z, _matrices(group, registers.shape[1]).to(model.device))
        sound = torch.isfinite(registers).flatten(1).all(dim=1).tolist()
        turn = Turn(rows)
        for k, trajectory in enumerate(group):
            if not sound[k]:
                error = TrajectoryError(
                    "nan_output", f"the network's output is not finite at step {trajectory.row + 1}"
                )
                turn.failed.append((trajectory, error))
                continue
            turn.advanced.append(_advanced(trajectory, registers[k], seen[k], estimate.x0[k]))
        return turn

    def _estimate(self, model: Denoiser, group: Sequence[Trajectory], x: Tensor, level: Level) -> tuple[Estimate, int]:
        """(x̂_0, ε̂) of every member, guidance merged; and how many rows the network saw."""
        guided = [k for k, trajectory in enumerate(group) if trajectory.guided]
        conditions = torch.stack([trajectory.condition for trajectory in group])
        if not guided:
            return model.denoise(x, level.t, level.alpha, level.sigma, conditions), len(group)
        order = [*range(len(group)), *guided]
        conditions = torch.cat([conditions, torch.stack([group[k].unconditional for k in guided])])
        branches = level.of(order)
        both = model.denoise(x[order], branches.t, branches.alpha, branches.sigma, conditions)
        estimate = both.of(range(len(group)))
        without = both.of(range(len(group), len(order)))
        there = level.of(guided)
        scales = [group[k].guidance_scale for k in guided]
        amounts = [group[k].guidance_rescale for k in guided]
        merged = merge(
            both.of(guided), without, x[guided], there.alpha, there.sigma, model.prediction_type, scales, amounts
        )
        estimate.x0[guided], estimate.epsilon[guided] = merged.x0, merged.epsilon
        return estimate, len(order)


def _advanced(trajectory: Trajectory, registers: Tensor, seen: Tensor, believed: Tensor) -> Advanced:
    plan, row = trajectory.plan, trajectory.row
    trajectory.advance(registers[: plan.registers])
    return Advanced(
        trajectory=trajectory,
        step=plan.step[row],
        completed=plan.completes(row),
        t=float(plan.t[row]),
        sigma=float(plan.sigma[row]),
        seen=seen,
        believed=believed,
        final=registers[0] if trajectory.finished else None,
        row=trajectory.row,
        registers=trajectory.registers,
    )


def _stacked(group: Sequence[Trajectory]) -> Tensor:
    """Everybody's registers as one tensor; plans with fewer get zeros, which change no bit of a sum."""
    counts = {trajectory.plan.registers for trajectory in group}
    if len(counts) == 1:
        return torch.stack([trajectory.registers for trajectory in group])
    most = max(counts)
    shape = group[0].registers.shape[1:]
    out = torch.zeros(len(group), most, *shape, device=group[0].registers.device)
    for k, trajectory in enumerate(group):
        out[k, : trajectory.plan.registers] = trajectory.registers
    return out


def _drawn(group: Sequence[Trajectory], like: Tensor) -> Tensor:
    """(B, …) everybody's z."""
    if not any(trajectory.plan.draws(trajectory.row) for trajectory in group):
        return torch.zeros_like(like)
    return torch.stack([trajectory.draw() for trajectory in group]).to(like.device)


def _matrices(group: Sequence[Trajectory], most: int) -> Tensor:
    """(B, R, R+3) float32; a plan of fewer registers sits in the corner, its x̂_0, ε̂, z columns at the end."""
    out = np.zeros((len(group), most, most + 3))
    for k, trajectory in enumerate(group):
        count = trajectory.plan.registers
        matrix = trajectory.plan.matrices[trajectory.row]
        out[k, :count, :count] = matrix[:, :count]
        out[k, :count, most:] = matrix[:, count:]
    return torch.from_numpy(out).float()


def _level(group: Sequence[Trajectory], device: torch.device) -> Level:
    """Everybody's noise level."""
    return Level(*(_column(group, table, device) for table in ("t", "alpha", "sigma")))


def _column(group: Sequence[Trajectory], table: str, device: torch.device) -> Tensor:
    """(B,) float32 of everybody's row, from the plans' float64 tables."""
    values = [float(getattr(trajectory.plan, table)[trajectory.row]) for trajectory in group]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _diagnosed(error: Exception) -> TrajectoryError:
    """A name for what a lone trajectory's evaluation raised."""
    if isinstance(error, TrajectoryError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return TrajectoryError("out_of_memory", "the device has not enough memory for one image of this model")
    return TrajectoryError("evaluation_failed", f"{type(error).__name__}: {error}")
