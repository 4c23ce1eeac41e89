"""Guidance between two noise levels: one row of the network outside of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from denoised.jobs.errors import RecordError
from denoised.jobs.record import JobRecord
from denoised.jobs.request_limits import check_limits
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.serving.sampling import sample
from denoised.worker.delivery.progress import AttemptProgress
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.resume import ResumePoint
from tests.harness import request

Trajectories = Callable[..., Any]
LEVELS = [20.0, 4.0, 2.0, 1.0, 0.2, 0.05]
GUIDED: dict[str, Any] = {"label": 1, "guidance_scale": 3.0, "sampler": "euler", "steps": 6, "sigmas": LEVELS}
INTERVAL = [0.2, 2.0]  # holds 2 and 1: the lower end is outside


class Counting:
    """A model that counts the rows of its evaluations."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.rows: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def denoise(self, x: torch.Tensor, *rest: Any) -> Any:
        self.rows.append(len(x))
        return self._model.denoise(x, *rest)


def run(model: Any, trajectories: list[Any], turns_of: Any) -> dict[int, torch.Tensor]:
    engine = Engine({"fake": model}, 8)
    engine.batch.admit(trajectories)
    items = (item for turn in turns_of(engine) for item in turn.advanced if item.result is not None)
    return {item.trajectory.index: item.result for item in items}


def test_levels_outside_the_interval_take_one_row(model: Any, trajectories_of: Trajectories, turns_of: Any) -> None:
    counting = Counting(model)
    (trajectory,) = trajectories_of(model, "a", guidance_interval=INTERVAL, **GUIDED)
    assert trajectory.pending_evaluations == 8
    assert [trajectory.evaluations_of(row) for row in range(6)] == [1, 1, 2, 2, 1, 1]
    run(counting, [trajectory], turns_of)
    assert counting.rows == [1, 1, 2, 2, 1, 1]
    assert trajectory.pending_evaluations == 0


def test_an_interval_of_all_levels_is_none_and_one_without_levels_is_no_guidance(
    model: Any, trajectories_of: Trajectories, turns_of: Any
) -> None:
    def picture(**fields: Any) -> torch.Tensor:
        (found,) = run(model, trajectories_of(model, "a", **{**GUIDED, **fields}), turns_of).values()
        return found

    assert torch.equal(picture(guidance_interval=[0.0, 1e9]), picture())
    assert torch.equal(picture(guidance_interval=[5.0, 6.0]), picture(guidance_scale=1.0))
    part = picture(guidance_interval=INTERVAL)
    assert not torch.equal(part, picture())
    assert not torch.equal(part, picture(guidance_scale=1.0))
    alone = sample(
        model,
        [1],
        seed=7,
        sampler="euler",
        steps=6,
        guidance_scale=3.0,
        guidance_interval=(0.2, 2.0),
        levels=LevelChoice(sigmas=tuple(LEVELS)),
    )
    assert torch.equal(part, alone[0])


def test_images_of_any_interval_share_a_batch(model: Any, trajectories_of: Trajectories, turns_of: Any) -> None:
    """Each has the bits of a run alone; the rows of a turn are those that its members need."""
    intervals: list[Any] = [None, INTERVAL, [1.0, 30.0], [0.01, 0.3]]

    def job(k: int) -> list[Any]:
        return trajectories_of(model, str(k), seed=k, guidance_interval=intervals[k], **GUIDED)

    engine = Engine({"fake": (counting := Counting(model))}, 8)
    for k in range(4):
        engine.batch.admit(job(k))
    items = (item for turn in turns_of(engine) for item in turn.advanced if item.result is not None)
    together = {item.trajectory.job: item.result for item in items}
    assert counting.rows == [6, 6, 7, 6, 6, 6]
    for k in range(4):
        assert torch.equal(together[str(k)], run(model, job(k), turns_of)[0])


def test_a_resumed_image_has_the_bits_and_the_evaluations_of_one_that_was_not(
    model: Any, trajectories_of: Trajectories, turns_of: Any
) -> None:
    fields = {**GUIDED, "guidance_interval": INTERVAL}
    whole = run(model, trajectories_of(model, "a", **fields), turns_of)[0]
    for stop in range(1, 6):
        (first,) = trajectories_of(model, "a", **fields)
        engine = Engine({"fake": model}, 8)
        engine.batch.admit([first])
        for _ in range(stop):
            engine.step()
        (again,) = trajectories_of(model, "a", **fields)
        again.resume(ResumePoint(first.row, first.registers))
        assert again.completed_evaluations == [0, 1, 2, 4, 6, 7, 8][stop]
        assert torch.equal(run(model, [again], turns_of)[0], whole)


def test_the_progress_counts_the_evaluations_that_were_made(
    model: Any, trajectories_of: Trajectories, turns_of: Any
) -> None:
    fields = {**GUIDED, "guidance_interval": INTERVAL, "n": 2}
    trajectories = trajectories_of(model, "a", **fields)
    progress = AttemptProgress([0, 0])
    progress.resume(JobRecord("a", "", request(**fields), 0.0), trajectories)
    assert progress.evaluations == 0
    engine = Engine({"fake": model}, 8)
    engine.batch.admit(trajectories)
    for turn in turns_of(engine):
        progress.advance(turn.rows, turn.advanced)
    assert progress.evaluations == 2 * 8
    assert progress.rows == 2 * 8


@pytest.mark.parametrize("interval", [[1.0], [1.0, 2.0, 3.0], [-1.0, 2.0], ["0", 1.0], [1.0, 1e10]])
def test_a_record_with_an_impossible_interval_is_refused(interval: list[Any]) -> None:
    with pytest.raises(RecordError):
        check_limits(request(guidance_interval=interval))
