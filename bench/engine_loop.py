"""Our own engine without a server: no queue, no store, no pictures; only as many trajectories as the server had."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.load import GUIDANCE, Ask
from denoised.jobs.record import JobRecord
from denoised.jobs.request import SamplingRequest
from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import trajectories


def evaluations_per_second(
    model: ServedModel, asks: Iterator[Ask], alive: int, *, warm_up: float, seconds: float
) -> float:
    """Rows of the network a second, with `alive` trajectories in every turn; who is done is replaced at once."""
    engine = Engine({model.card.name: model}, alive)
    _turns(engine, model, asks, alive, warm_up)
    began = time.perf_counter()
    rows = _turns(engine, model, asks, alive, seconds)
    return rows / (time.perf_counter() - began)


def _turns(engine: Engine, model: ServedModel, asks: Iterator[Ask], alive: int, seconds: float) -> int:
    end, rows = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        while len(engine.batch) < alive:
            engine.batch.admit(trajectories(_job(model, next(asks)), model))
        rows += engine.step().rows
    return rows


def _job(model: ServedModel, ask: Ask) -> JobRecord:
    request = SamplingRequest(
        model=model.card.name,
        label=ask.label,
        label_name=None,
        n=1,
        seed=ask.seed,
        sampler="ddim",
        steps=ask.steps,
        eta=0.0,
        guidance_scale=GUIDANCE if ask.guided else 1.0,
        format="png",
    )
    return JobRecord(id=f"bench-{ask.seed}-{ask.steps}", owner="", request=request, created_at=0.0)
