"""The members of a turn as tensors: the rows and registers of each, one below another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from denoised.model.diffusion.plans import Plan
from denoised.worker.engine import group as group_module
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.group import Group, Table
from denoised.worker.engine.trajectory import Trajectory
from tests.harness import LABELS

Trajectories = Callable[..., list[Trajectory]]
CPU = torch.device("cpu")
MIX = [("ddim", 5, 1.0), ("heun", 4, 3.0), ("dpmpp_2m", 7, 1.0), ("ddpm", 6, 2.0)]


@pytest.fixture
def members(model: Any, trajectories_of: Trajectories) -> list[Trajectory]:
    """Plans of one, two and three registers, with and without guidance."""
    found = []
    for k, (sampler, steps, scale) in enumerate(MIX):
        found += trajectories_of(model, f"job-{k}", sampler=sampler, steps=steps, guidance_scale=scale, label=1, seed=k)
    assert len({member.plan.registers for member in found}) > 1
    return found


def assert_row(table: Table, plan: Plan, first: int, row: int) -> None:
    """A row in the table is the plan's row in float32."""
    rows = table.rows(torch.tensor([first + row]), plan.registers)
    for column, name in ((rows.level.t, "t"), (rows.level.alpha, "alpha"), (rows.level.sigma, "sigma")):
        assert column.item() == np.float32(getattr(plan, name)[row])
    assert rows.log_variance_range.item() == np.float32(plan.log_variance_range[row])
    np.testing.assert_array_equal(rows.matrices[0].numpy(), plan.matrices[row].astype(np.float32))


def test_every_row_of_every_plan_is_in_the_table(members: list[Trajectory]) -> None:
    table = Table(CPU)
    plans = [member.plan for member in members]
    for first, plan in zip(table.first_rows(plans), plans, strict=True):
        for row in range(plan.evaluations):
            assert_row(table, plan, first, row)


def test_a_full_table_keeps_the_plans_that_are_requested(
    model: Any, members: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "MAX_TABLE_ROWS", 41)
    table = Table(CPU)
    table.first_rows([model.plan("ddim", steps, 0.0) for steps in range(1, 9)])
    plans = [member.plan for member in members]
    (first,) = table.first_rows(plans[:1])
    assert first == sum(range(1, 9)), "the table has room for one more"
    firsts = table.first_rows(plans)
    assert min(firsts) == 0, "unused plans are removed"
    for first, plan in zip(firsts, plans, strict=True):
        assert_row(table, plan, first, plan.evaluations - 1)


def test_parting_registers_inverts_stacking_them(members: list[Trajectory]) -> None:
    group = Group(members, Table(CPU), CPU)
    stacked = group.stacked()
    assert stacked.shape[:2] == (len(members), max(member.plan.registers for member in members))
    for member, whole, own in zip(members, stacked, group.parted(stacked), strict=True):
        assert torch.equal(own, member.registers)
        assert not whole[member.plan.registers :].any()


def test_guided_members_have_a_second_row_without_their_label(members: list[Trajectory]) -> None:
    group = Group(members, Table(CPU), CPU)
    assert group.guided is not None
    guided = [k for k, member in enumerate(members) if member.guided]
    assert group.guided.index.tolist() == guided
    assert group.guided.order.tolist() == [0, 1, 2, 3, *guided]
    assert group.is_guided is not None
    assert group.is_guided.tolist() == [member.guided for member in members]
    labels = [int(member.conditioning["label"]) for member in members] + [len(LABELS)] * len(guided)
    assert group.conditioning["label"].tolist() == labels


def test_a_group_matches_its_members_in_their_order_alone(members: list[Trajectory]) -> None:
    group = Group(members, Table(CPU), CPU)
    assert group.is_of(list(members))
    assert not group.is_of(members[:-1])
    assert not group.is_of([*members[1:], members[0]])


def test_an_empty_engine_keeps_no_tensors_of_former_members(model: Any, members: list[Trajectory]) -> None:
    engine = Engine({"fake": model}, 8)
    engine.batch.admit(members)
    while len(engine.batch):
        engine.step()
    assert engine._groups == {}


def test_registers_are_stacked_again_only_if_a_member_has_others(members: list[Trajectory]) -> None:
    group = Group(members, Table(CPU), CPU)
    stacked = group.stacked()
    for member, own in zip(members, group.parted(stacked), strict=True):
        member.registers = own
    assert group.stacked() is stacked
    members[1].registers = members[1].registers + 1
    again = group.stacked()
    assert torch.equal(again[0], stacked[0])
    assert torch.equal(again[1, : members[1].plan.registers], members[1].registers)
