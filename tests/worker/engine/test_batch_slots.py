"""How many images a turn holds: of each model, within the memory, and fewer where it has run out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from denoised.jobs.record import JobRecord
from denoised.model.diffusion.predictions import Estimate
from denoised.worker.engine import memory_budget
from denoised.worker.engine.batch_size import measure, measure_all
from denoised.worker.engine.batch_slots import BatchSlots
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.memory_budget import evaluation_budget
from denoised.worker.engine.speed import Speed
from denoised.worker.engine.trajectory import Trajectory, trajectories
from tests.harness import request


def job(model: Any, images: int, name: str = "job", **fields: Any) -> list[Trajectory]:
    given = request(model=model.card.name, n=images, **{"steps": 5, "label": 1, **fields})
    return trajectories(JobRecord(name, "", given, created_at=0.0), model)


def test_each_model_has_its_own_slots(fake_model: Any) -> None:
    models = {name: fake_model(name) for name in ("large", "small")}
    engine = Engine(models, 16, slots={"large": 2})
    for model in models.values():
        engine.admit(job(model, 8, model.card.name))
    assert [engine.batch.free_slots(name) for name in models] == [0, 8]
    assert {turn.advanced[0].trajectory.model: len(turn.advanced) for turn in (engine.step(), engine.step())} == {
        "large": 2,
        "small": 8,
    }


@pytest.mark.parametrize(("guidance_scale", "images"), [(1.0, 4), (3.0, 2)])
def test_a_turn_holds_what_fits_into_memory_guidance_counted(
    guidance_scale: float, images: int, fake_model: Any
) -> None:
    model = fake_model()
    model.row_bytes = 1000
    engine = Engine({"fake": model}, 16, memory_bytes=4999)
    engine.admit(job(model, 8, guidance_scale=guidance_scale))
    turn = engine.step()
    assert (len(turn.advanced), turn.rows, turn.slots) == (images, 4, images)


def test_an_image_that_needs_more_than_there_is_is_evaluated_alone(fake_model: Any) -> None:
    model = fake_model()
    model.row_bytes = 10_000
    engine = Engine({"fake": model}, 16, memory_bytes=1)
    engine.admit(job(model, 3))
    assert len(engine.step().advanced) == 1


class Narrow:
    """Makes a fake model run out of memory with more than `rows` rows, or with a label."""

    @staticmethod
    def of(fake_model: type, rows: int, label: int = -1) -> Any:
        class Model(fake_model):  # type: ignore[misc]
            sizes: Sequence[int] = ()

            def denoise(self, x: Tensor, *level: Any) -> Estimate:
                self.sizes = [*self.sizes, len(x)]
                if len(x) > rows or label in level[-1]["label"].tolist():
                    raise torch.OutOfMemoryError
                estimate: Estimate = super().denoise(x, *level)
                return estimate

        return Model()


def test_where_memory_runs_out_later_turns_hold_fewer_images(fake_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = Narrow.of(fake_model, rows=3)
    engine = Engine({"fake": model}, 16)
    engine.admit(job(model, 12))
    with caplog.at_level(logging.WARNING):
        assert len(engine.step().advanced) == 12, "the first turn is repeated in parts"
    assert "a turn holds fewer images of this size" in caplog.text
    model.sizes = []
    while len(engine.batch):
        engine.step()
    assert max(model.sizes) == 3, "no later turn fails"


def test_an_image_that_finds_no_memory_by_itself_lowers_nothing(fake_model: Any) -> None:
    model = Narrow.of(fake_model, rows=100, label=2)
    engine = Engine({"fake": model}, 16)
    engine.admit(job(model, 7, "sound"))
    engine.admit(job(model, 1, "large", label=2))
    turn = engine.step()
    assert [trajectory.job for trajectory, _ in turn.failed] == ["large"]
    assert engine.batch.slots.of_model("fake") == 16
    assert len(engine.step().advanced) == 7


def test_slots_are_lowered_by_key_never_raised_and_forgotten_when_there_are_many() -> None:
    slots = BatchSlots(16, {"m": 8})
    slots.lower("a", 3)
    slots.lower("a", 5)
    slots.lower("b", 0)
    assert [slots.of_key("m", key) for key in ("a", "b", "c")] == [3, 1, 8]
    for key in range(300):
        slots.lower(key, 2)
    assert slots.of_key("m", "a") == 8


def test_every_model_is_measured_when_it_is_loaded_guidance_counted(fake_model: Any) -> None:
    plain, guided = fake_model("plain"), fake_model("guided")
    default = guided.card.default.model_copy(update={"guidance_scale": 4.0})
    guided.card = guided.card.model_copy(update={"default": default})
    speed = Speed()
    slots = measure_all({"plain": plain, "guided": guided}, speed, memory_bytes=None)
    assert slots.keys() == speed.paces().keys() == {"plain", "guided"}
    assert speed.paces()["plain"][0][0] == 1
    assert speed.paces()["guided"][0][0] == 2, "a guided image is two rows"
    assert speed.decode_seconds() == {}, "models of pixels have no decoder"
    plain.row_bytes = guided.row_bytes = 1000
    assert measure_all({"plain": plain, "guided": guided}, Speed(), 8000) == {"plain": 8, "guided": 4}


def test_a_turn_that_takes_all_of_the_time_is_the_only_one(fake_model: Any) -> None:
    """A large model must not delay the start of a worker by several of its turns."""
    model = fake_model(seconds=0.3)
    (pace,) = measure(model, seconds=0.2)
    assert len(model.calls) == 1
    assert (pace.images, pace.rows) == (1, 1)
    assert math.isfinite(pace.seconds)


def test_half_of_the_free_memory_is_for_evaluations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo, limit, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr(memory_budget, "MEMINFO", meminfo)
    monkeypatch.setattr(memory_budget, "CGROUP_FILES", [(str(limit), str(used))])
    assert evaluation_budget("cpu") == 2000 * 1024
    limit.write_text("max\n")
    used.write_text("100\n")
    assert evaluation_budget("cpu") == 2000 * 1024
    limit.write_text(f"{1024 * 1024 + 100}\n")
    assert evaluation_budget("cpu") == 512 * 1024
    monkeypatch.setattr(memory_budget, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory_budget, "CGROUP_FILES", [])
    assert evaluation_budget("cpu") is None
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (10_000, 20_000))
    assert evaluation_budget("cuda:1") == 5000
