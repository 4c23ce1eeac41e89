"""Those who share a turn, as tensors: what stays from turn to turn is made once, what changes is gathered at once.

No step of a turn goes through the trajectories one by one where a table can be indexed by all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from denoised.model.diffusion.plans import Plan
from denoised.worker.engine.trajectory import Trajectory

MOST_ROWS = 8_192  # of a table, beyond which it forgets the plans that nobody here has


@dataclass(frozen=True)
class Level:
    """The noise levels of a batch: t, α, σ, each (B,) float32."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def of(self, members: Tensor) -> Level:
        """Those of some members, by index."""
        return Level(self.t[members], self.alpha[members], self.sigma[members])


@dataclass(frozen=True)
class Rows:
    """The next row of every member's plan, rounded from the plans' float64.

    Attributes:
        level: t, α and σ of each row.
        log_variance_range: (B,) float32.
        matrices: (B, R, R+3) float32.
    """

    level: Level
    log_variance_range: Tensor
    matrices: Tensor


@dataclass(frozen=True)
class Guided:
    """The guided ones of a group. index: (G,) which members they are; order: (B + G,) everybody, then they again;
    scale, rescale: (G,), the latter None where nobody asks for it."""

    index: Tensor
    order: Tensor
    scale: Tensor
    rescale: Tensor | None


class Table:
    """The rows of all plans in use, one plan below another, on a device.

    A plan of fewer registers sits in the corner of its matrices, its x̂_0, ε̂ and z in the last columns.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first: dict[Plan, int] = {}

    def first_rows(self, plans: Sequence[Plan]) -> list[int]:
        """Where each plan begins. What an earlier call said may be true no more."""
        missing = [plan for plan in dict.fromkeys(plans) if plan not in self._first]
        if missing:
            kept = list(self._first)
            if sum(plan.evaluations for plan in (*kept, *missing)) > MOST_ROWS:
                kept = [plan for plan in dict.fromkeys(plans) if plan in self._first]
            self._write([*kept, *missing])
        return [self._first[plan] for plan in plans]

    def rows(self, index: Tensor, registers: int) -> Rows:
        """Those at an index (B,), for plans of at most so many registers."""
        t, alpha, sigma, log_variance_range = self._columns[:, index].unbind(0)
        matrices = self._matrices[index]
        if registers < self._registers:
            matrices = torch.cat([matrices[:, :registers, :registers], matrices[:, :registers, -3:]], dim=2)
        return Rows(Level(t, alpha, sigma), log_variance_range, matrices)

    def _write(self, plans: Sequence[Plan]) -> None:
        self._registers = max(plan.registers for plan in plans)
        columns = [np.stack([plan.t, plan.alpha, plan.sigma, plan.log_variance_range]) for plan in plans]
        matrices = [_padded(plan, self._registers) for plan in plans]
        self._columns = torch.from_numpy(np.concatenate(columns, axis=1)).float().to(self._device)
        self._matrices = torch.from_numpy(np.concatenate(matrices)).float().to(self._device)
        starts = np.cumsum([0, *(plan.evaluations for plan in plans)]).tolist()
        self._first = dict(zip(plans, starts, strict=False))


class Group:
    """Trajectories of one model in the order in which the network sees them.

    conditions: (B + G,) of `PixelModel.condition`, without their labels at the end for the G guided ones;
    is_guided: (B,) bool; registers: the most that a plan here has.
    """

    def __init__(self, members: Sequence[Trajectory], table: Table, device: torch.device) -> None:
        self.members = members
        counts = {member.plan.registers for member in members}
        self.registers, self._alike = max(counts), len(counts) == 1
        zeros = members[0].registers.new_zeros(self.registers, *members[0].registers.shape[1:])
        self._filling = [zeros[member.plan.registers :] for member in members]
        guided = [k for k, member in enumerate(members) if member.guided]
        conditions = [member.condition for member in members] + [members[k].unconditional for k in guided]
        self.conditions = torch.stack(conditions).to(device)
        self.is_guided = torch.tensor([member.guided for member in members], device=device)
        self.guided = _guided(members, guided, device) if guided else None
        self._table, self._device = table, device

    def is_of(self, members: Sequence[Trajectory]) -> bool:
        """Whether it is these, in this order."""
        same = len(members) == len(self.members)
        return same and all(one is other for one, other in zip(members, self.members, strict=True))

    def rows(self) -> Rows:
        """Everybody's next row."""
        first = self._table.first_rows([member.plan for member in self.members])
        index = [start + member.row for start, member in zip(first, self.members, strict=True)]
        return self._table.rows(torch.tensor(index, device=self._device), self.registers)

    def stacked(self) -> Tensor:
        """(B, R, …) everybody's registers; plans with fewer get zeros, which change no bit of a sum."""
        if self._alike:
            return torch.stack([member.registers for member in self.members])
        own = [member.registers for member in self.members]
        parts = [part for both in zip(own, self._filling, strict=True) for part in both]
        return torch.cat(parts).view(len(own), self.registers, *own[0].shape[1:])

    def parted(self, registers: Tensor) -> list[Tensor]:
        """The inverse of `stacked`."""
        if self._alike:
            return list(registers.unbind(0))
        return [own[: member.plan.registers] for own, member in zip(registers, self.members, strict=True)]

    def drawn(self, like: Tensor) -> Tensor:
        """(B, …) everybody's z."""
        if not any(member.draws for member in self.members):
            return torch.zeros_like(like)
        return torch.stack([member.draw() for member in self.members]).to(self._device)


def _guided(members: Sequence[Trajectory], guided: Sequence[int], device: torch.device) -> Guided:
    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    rescale = [members[k].guidance_rescale for k in guided]
    return Guided(
        index=torch.tensor(guided, device=device),
        order=torch.tensor([*range(len(members)), *guided], device=device),
        scale=column([members[k].guidance_scale for k in guided]),
        rescale=column(rescale) if any(rescale) else None,
    )


def _padded(plan: Plan, most: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(N, R, R+3) for R = most."""
    count = plan.registers
    out = np.zeros((plan.evaluations, most, most + 3))
    out[:, :count, :count] = plan.matrices[:, :, :count]
    out[:, :count, most:] = plan.matrices[:, :, count:]
    return out
