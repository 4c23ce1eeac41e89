"""Resume points: bytes that hold a trajectory between two evaluations, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from denoised.model.diffusion.samplers import SAMPLERS
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.resume import ResumePoint, from_bytes, to_bytes
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.errors import ResumeError

Make = Callable[..., list[Trajectory]]
REGISTERS = arrays("<f4", (2, 1, 3, 3))


@given(st.dictionaries(st.integers(0, 1023), st.tuples(st.integers(1, 4999), REGISTERS), max_size=5))
def test_a_resume_point_survives_serialization_bit_for_bit(images: dict[int, tuple[int, Any]]) -> None:
    saved = {index: ResumePoint(row, torch.from_numpy(array.copy())) for index, (row, array) in images.items()}
    found = from_bytes(to_bytes(saved))
    assert {index: point.row for index, point in found.items()} == {index: point.row for index, point in saved.items()}
    for index, point in saved.items():
        assert torch.equal(found[index].registers.view(torch.int32), point.registers.view(torch.int32))


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ResumeError):
        from_bytes(data)


def test_damaged_bytes_are_refused_or_hold_other_numbers() -> None:
    """Each byte of a point in turn: never another exception, never another image."""
    data = to_bytes({3: ResumePoint(7, torch.ones(1, 1, 2, 2))})
    refused = 0
    for place in range(len(data)):
        torn = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        try:
            assert len(from_bytes(torn)) == 1
        except ResumeError:
            refused += 1
    assert refused > len(data) // 2
    for length in range(len(data)):
        with pytest.raises(ResumeError):
            from_bytes(data[:length])


def test_a_point_names_its_format_and_one_of_a_newer_version_is_refused() -> None:
    data = to_bytes({0: ResumePoint(1, torch.ones(1, 1, 2, 2))})
    named = b'"format":"1"'
    assert named in data
    with pytest.raises(ResumeError, match=r"format 2 \(allowed: up to 1\)"):
        from_bytes(data.replace(named, b'"format":"2"'))


def test_a_pickle_is_no_resume_point() -> None:
    with pytest.raises(ResumeError):
        from_bytes(b"\x80\x04cposix\nsystem\n(S'true'\ntR.")


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_ends_with_the_same_bits_from_any_row_that_it_is_resumed_at(
    sampler: str, model: Any, trajectories_of: Make, turns_of: Any
) -> None:
    fields: dict[str, Any] = {"sampler": sampler, "steps": 7, "label": 1, "guidance_scale": 2.0, "seed": 11}
    rows, undisturbed = _run(model, trajectories_of(model, "whole", **fields), turns_of)
    assert len(rows) >= 7
    for row, registers in rows[:-1]:
        (trajectory,) = trajectories_of(model, "again", **fields)
        trajectory.resume(from_bytes(to_bytes({0: ResumePoint(row, registers)}))[0])
        assert trajectory.row == row
        _, final = _run(model, [trajectory], turns_of)
        assert torch.equal(final, undisturbed)


def _run(model: Any, trajectories: list[Trajectory], turns_of: Any) -> tuple[list[tuple[int, Any]], Any]:
    engine = Engine({"fake": model}, 4)
    engine.batch.admit(trajectories)
    items = [item for turn in turns_of(engine) for item in turn.advanced]
    return [(item.row, item.registers) for item in items], items[-1].result


def test_registers_that_a_turn_returned_never_change(model: Any, trajectories_of: Make, turns_of: Any) -> None:
    """Another thread saves them while the engine goes on."""
    engine = Engine({"fake": model}, 4)
    engine.batch.admit([*trajectories_of(model, n=2, steps=9), *trajectories_of(model, steps=6, sampler="unipc")])
    handed = [(item.registers, item.registers.clone()) for turn in turns_of(engine) for item in turn.advanced]
    assert len(handed) == 24
    assert all(torch.equal(now, then) for now, then in handed)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (ResumePoint(0, torch.zeros(1, 1, 4, 4)), "row 0 of 4"),
        (ResumePoint(5, torch.zeros(1, 1, 4, 4)), "row 5 of 4"),
        (ResumePoint(-1, torch.zeros(1, 1, 4, 4)), "row -1 of 4"),
        (ResumePoint(2, torch.zeros(2, 1, 4, 4)), r"registers are \(2, 1, 4, 4\)"),
        (ResumePoint(2, torch.zeros(1, 1, 8, 8)), r"registers are \(1, 1, 8, 8\)"),
        (ResumePoint(2, torch.zeros(1, 1, 4, 4, dtype=torch.float64)), "float64"),
    ],
)
def test_a_resume_point_of_another_plan_or_shape_is_refused(
    saved: ResumePoint, message: str, model: Any, trajectories_of: Make
) -> None:
    """For example after a model folder was replaced by another with the same name."""
    (trajectory,) = trajectories_of(model)
    with pytest.raises(ResumeError, match=message):
        trajectory.resume(saved)
