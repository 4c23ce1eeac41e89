"""One turn of the engine: an evaluation in flight, and the outcome of a complete one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from denoised.model.diffusion.predictions import Estimate
from denoised.worker.engine.group import Group, Rows
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.errors import TrajectoryError


class Advanced(NamedTuple):
    """A trajectory after one row of its plan, for others to read while the trajectory itself continues.

    Attributes:
        trajectory: The trajectory.
        row: The next row of its plan.
        registers: (R, …) after the row.
        position: Of the image in the tensors of the turn.
        turn_x_t: (B, …) see `x_t`.
        turn_estimate: (B, …) see `denoised` and `epsilon`.
        result: (…) x_0 if that was the plan's last row, else None.
    """

    trajectory: Trajectory
    row: int
    registers: Tensor
    position: int
    turn_x_t: Tensor
    turn_estimate: Estimate
    result: Tensor | None

    @classmethod
    def by(cls, trajectory: Trajectory, registers: Tensor, position: int, x_t: Tensor, estimate: Estimate) -> Advanced:
        """Advance a trajectory by one row. position: of the image in the turn's x_t and estimate."""
        trajectory.advance(registers)
        result = trajectory.registers[0] if trajectory.finished else None
        return cls(trajectory, trajectory.row, trajectory.registers, position, x_t, estimate, result)

    @property
    def x_t(self) -> Tensor:
        """(…) what the network saw."""
        return self.turn_x_t[self.position]

    @property
    def denoised(self) -> Tensor:
        """(…) x̂_0, its estimate, with guidance and clipped."""
        return self.turn_estimate.x0[self.position]

    @property
    def epsilon(self) -> Tensor:
        """(…) ε̂, its estimate of the noise in x_t, with guidance."""
        return self.turn_estimate.epsilon[self.position]

    @property
    def step(self) -> int:
        """How many steps are complete."""
        return self.trajectory.plan.step[self.row - 1]

    @property
    def completed(self) -> bool:
        """Whether the row completed a step; the first row of a two-stage solver completes none."""
        return self.trajectory.plan.completes_step(self.row - 1)

    @property
    def t(self) -> float:
        """The timestep of `x_t`."""
        return float(self.trajectory.plan.t[self.row - 1])

    @property
    def sigma(self) -> float:
        """σ of `x_t`."""
        return float(self.trajectory.plan.sigma[self.row - 1])


@dataclass(frozen=True)
class Turn:
    """The outcome of one evaluation.

    Attributes:
        rows: Its batch size, where a guided image counts as two or three.
        advanced: The trajectories that it advanced.
        failed: The trajectories that cannot continue.
        halved: Whether the evaluation was repeated in parts, because the whole of it failed.
        concurrent_rows: Rows of the evaluation that was in flight when it completed.
        slots: Images that it could have held.
        seconds: From its start to its end.
    """

    rows: int = 0
    advanced: list[Advanced] = field(default_factory=list)
    failed: list[tuple[Trajectory, TrajectoryError]] = field(default_factory=list)
    halved: bool = False
    concurrent_rows: int = 0
    slots: int = 0
    seconds: float = 0.0

    @property
    def batch(self) -> int:
        """All rows in flight, those of the concurrent evaluation included."""
        return self.rows + self.concurrent_rows


@dataclass(frozen=True)
class PendingEvaluation:
    """An evaluation that has begun.

    Attributes:
        group: The members that it evaluates.
        registers: (B, R, …) of the group when it began.
        plan_rows: The row of each member's plan.
        wait: Waits for the network's estimate, of the members and then of the guided ones without their label.
    """

    group: Group
    registers: Tensor
    plan_rows: Rows
    wait: Callable[[], Estimate]

    @property
    def x_t(self) -> Tensor:
        """(B, …) what the network sees of the members."""
        return self.registers[:, 0]


@dataclass(frozen=True)
class InFlightStep:
    """A turn that is not complete.

    Attributes:
        members: The trajectories in it.
        slots: Images that it could have held.
        started_at: By `time.perf_counter`.
        evaluation: The evaluation, or why it could not begin.
    """

    members: Sequence[Trajectory]
    slots: int
    started_at: float
    evaluation: PendingEvaluation | Exception

    @property
    def rows(self) -> int:
        """Rows of the evaluation; 0 if it could not begin."""
        return len(self.evaluation.group.conditioning) if isinstance(self.evaluation, PendingEvaluation) else 0
