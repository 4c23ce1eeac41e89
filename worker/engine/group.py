"""The members of a turn as tensors: what stays from turn to turn is built once, what changes is gathered at once.

No step of a turn goes through the trajectories one by one where a table can be indexed by all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from denoised.model.diffusion.plans import Plan
from denoised.model.serving.conditioning import Conditioning
from denoised.worker.engine.trajectory import Guidance, Trajectory

MAX_TABLE_ROWS = 8_192  # beyond them a table forgets the plans that no member of the turn uses


@dataclass(frozen=True)
class NoiseLevel:
    """The noise levels of a batch: t, α, σ, each (B,) float32."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def of(self, members: Tensor) -> NoiseLevel:
        """The levels of some members, by index."""
        return NoiseLevel(self.t[members], self.alpha[members], self.sigma[members])


@dataclass(frozen=True)
class Rows:
    """The next row of every member's plan, rounded from the plans' float64.

    Attributes:
        level: t, α and σ of each row.
        log_variance_range: (B,) float32.
        matrices: (B, R, R+3) float32.
    """

    level: NoiseLevel
    log_variance_range: Tensor
    matrices: Tensor


@dataclass(frozen=True)
class Guided:
    """The guided members of a group, G of B.

    Attributes:
        index: (G,) their indices in the group.
        order: (B + G + D,) the member of each row of the evaluation.
        scale: (G,) float32.
        rescale: (G,) float32; None if no member asks for it.
        twice: (D,) the indices in `index` of those with two guidances; None if D = 0.
        image_scale: (D,) float32.
    """

    index: Tensor
    order: Tensor
    scale: Tensor
    rescale: Tensor | None
    twice: Tensor | None
    image_scale: Tensor


class Table:
    """The rows of all plans in use, one plan below another, on a device.

    A plan with fewer registers than the others fills the upper left corner of its matrices, and its columns for x̂_0,
    ε̂ and z are the last three.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first: dict[Plan, int] = {}

    def first_rows(self, plans: Sequence[Plan]) -> list[int]:
        """The index of each plan's first row. It is valid until the next call."""
        missing = [plan for plan in dict.fromkeys(plans) if plan not in self._first]
        if missing:
            kept = list(self._first)
            if sum(plan.evaluations for plan in (*kept, *missing)) > MAX_TABLE_ROWS:
                kept = [plan for plan in dict.fromkeys(plans) if plan in self._first]
            self._write([*kept, *missing])
        return [self._first[plan] for plan in plans]

    def rows(self, index: Tensor, registers: int) -> Rows:
        """The rows at an index (B,), of plans with at most `registers` registers."""
        t, alpha, sigma, log_variance_range = self._columns[:, index].unbind(0)
        matrices = self._matrices[index]
        if registers < self._registers:
            matrices = torch.cat([matrices[:, :registers, :registers], matrices[:, :registers, -3:]], dim=2)
        return Rows(NoiseLevel(t, alpha, sigma), log_variance_range, matrices)

    def _write(self, plans: Sequence[Plan]) -> None:
        self._registers = max(plan.registers for plan in plans)
        columns = [np.stack([plan.t, plan.alpha, plan.sigma, plan.log_variance_range]) for plan in plans]
        matrices = [_padded(plan, self._registers) for plan in plans]
        self._columns = torch.from_numpy(np.concatenate(columns, axis=1)).float().to(self._device)  # (4, N)
        self._matrices = torch.from_numpy(np.concatenate(matrices)).float().to(self._device)  # (N, R, R+3)
        starts = np.cumsum([0, *(plan.evaluations for plan in plans)]).tolist()
        self._first = dict(zip(plans, starts, strict=False))


class Group:
    """Trajectories of one model in the order in which the network evaluates them.

    Attributes:
        members: The B trajectories.
        conditioning: Of (B + G + D) rows: every member's, then the unconditional one of each guided member, then that
            with the input image alone of each of the D members with two guidances.
        is_guided: (B,) bool, at the row that each member had when the group was made; None if G = 0.
        guided: None if G = 0.
        unclipped: (U,) the indices of the members whose x̂_0 is not clipped; None if U = 0.
        registers: The most registers that a member's plan has.
    """

    def __init__(self, members: Sequence[Trajectory], table: Table, device: torch.device) -> None:
        self.members = members
        counts = {member.plan.registers for member in members}
        self.registers, self._alike = max(counts), len(counts) == 1
        zeros = members[0].registers.new_zeros(self.registers, *members[0].registers.shape[1:])
        self._padding = [zeros[member.plan.registers :] for member in members]
        self._guided_members = [member.guided for member in members]
        guidance = {k: each.guidance for k, each in enumerate(members) if each.guidance is not None and each.guided}
        self._applying = [member.applying for member in members]
        others = {k: members[k].now(each.others) for k, each in guidance.items()}
        conditioning = [member.now(member.conditioning) for member in members]
        conditioning += [each.select(slice(-1, None)) for each in others.values()]
        conditioning += [each.select(slice(0, 1)) for each in others.values() if len(each) == 2]
        self.conditioning = Conditioning.stack(conditioning).to(device)
        self.is_guided = torch.tensor(self._guided_members, device=device) if guidance else None
        self.guided = _guided(len(members), guidance, device) if guidance else None
        unclipped = [k for k, member in enumerate(members) if not member.plan.clips]
        self.unclipped = torch.tensor(unclipped, device=device) if unclipped else None
        self._table, self._device = table, device
        self._draws = not all(member.plan.is_deterministic for member in members)
        self._zeros: Tensor | None = None
        # The registers after the last turn, and the members' parts of them.
        self._registers, self._parts = zeros, list[Tensor]()

    def is_of(self, members: Sequence[Trajectory]) -> bool:
        """Whether the group has these members, in this order, with guidance and ControlNets at the rows of the same
        ones."""
        return (
            _are(members, self.members)
            and [member.guided for member in members] == self._guided_members
            and [member.applying for member in members] == self._applying
        )

    def rows(self) -> Rows:
        """Every member's next row."""
        first = self._table.first_rows([member.plan for member in self.members])
        index = [start + member.row for start, member in zip(first, self.members, strict=True)]
        return self._table.rows(torch.tensor(index, device=self._device), self.registers)

    def stacked(self) -> Tensor:
        """(B, R, …) every member's registers; plans with fewer get zeros, which change no bit of a sum."""
        own = [member.registers for member in self.members]
        if _are(own, self._parts):
            return self._registers
        if self._alike:
            return torch.stack(own)
        parts = [part for both in zip(own, self._padding, strict=True) for part in both]
        return torch.cat(parts).view(len(own), self.registers, *own[0].shape[1:])

    def parted(self, registers: Tensor) -> list[Tensor]:
        """The inverse of `stacked`, which returns these registers again if each member takes its part of them."""
        parts = list(registers.unbind(0))
        if not self._alike:
            parts = [own[: member.plan.registers] for own, member in zip(parts, self.members, strict=True)]
        self._registers, self._parts = registers, parts
        return parts

    def drawn(self, like: Tensor) -> Tensor:
        """(B, …) every member's z."""
        if not self._draws or not any(member.draws for member in self.members):
            if self._zeros is None:
                self._zeros = torch.zeros_like(like)
            return self._zeros
        return torch.stack([member.draw() for member in self.members]).to(self._device)


def _are(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether these are the same objects, in the same order."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _guided(count: int, guidance: dict[int, Guidance], device: torch.device) -> Guided:
    """guidance: by index of the member in its group of `count`."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    rescale = [each.rescale for each in guidance.values()]
    twice = [k for k, each in enumerate(guidance.values()) if each.image_scale is not None]
    members = list(guidance)
    return Guided(
        index=torch.tensor(members, device=device),
        order=torch.tensor([*range(count), *members, *(members[k] for k in twice)], device=device),
        scale=column([each.scale for each in guidance.values()]),
        rescale=column(rescale) if any(rescale) else None,
        twice=torch.tensor(twice, device=device) if twice else None,
        image_scale=column([each.image_scale for each in guidance.values() if each.image_scale is not None]),
    )


def _padded(plan: Plan, registers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """A plan's matrices (N, R, R+3) for R = registers."""
    count = plan.registers
    out = np.zeros((plan.evaluations, registers, registers + 3))
    out[:, :count, :count] = plan.matrices[:, :, :count]
    out[:, :count, registers:] = plan.matrices[:, :, count:]
    return out
