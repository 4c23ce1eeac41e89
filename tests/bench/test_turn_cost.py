"""The benchmark of a turn without the network: it runs every row through the engine and the publisher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.benchmark_run import BenchmarkRun
from bench.machine import this_machine
from bench.results import sample_names as names
from bench.results.report import render_page
from bench.results.samples import SampleRecorder
from bench.run_length import QUICK
from bench.sections import turn_cost
from denoised.model.serving.loading import ZOO, load_model
from denoised.worker.delivery import attempt


def test_a_turn_is_timed_with_every_image_and_a_frame_of_each_if_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[Any] = []
    make = attempt.frame_events
    monkeypatch.setattr(attempt, "frame_events", lambda *args: frames.extend(made := make(*args)) or made)
    model = load_model(ZOO / "digits")
    model.backend = turn_cost.IdleBackend(model, 3)
    assert 0 < turn_cost.turn_seconds(model, "ddim", 3, watched=False) < 1
    assert not frames
    assert 0 < turn_cost.turn_seconds(model, "ddim", 3, watched=True) < 1
    assert len(frames) == 3 * (turn_cost.WARM_UP_TURNS + turn_cost.TURNS)


def test_all_samplers_are_measured_and_stand_on_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(turn_cost, "turn_seconds", lambda model, sampler, images, watched: 1e-3 * (images + watched))
    recorder, lines = SampleRecorder(), list[str]()
    threads = torch.get_num_threads()
    turn_cost.measure_turns(BenchmarkRun(tmp_path, QUICK, lines.append, None), recorder)  # type: ignore[arg-type]
    assert torch.get_num_threads() == threads
    page = render_page(recorder.table(names.TURNS, "2026-11-30", this_machine()))
    for sampler in load_model(ZOO / "digits").card.samplers:
        assert f"| {sampler} | 1 | 16 | 64 | 2 | 17 | 65 |" in page
    assert "| 2 ms | ≤ 0.1 ms | **not met** |" in page
