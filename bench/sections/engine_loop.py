"""denoised's engine alone: no queue, no store, no images; only as many trajectories as the served run had."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.load.workloads import GUIDANCE, ImageRequest
from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import trajectories


def evaluations_per_second(
    model: ServedModel, requests: Iterator[ImageRequest], concurrent: int, *, warm_up: float, seconds: float
) -> float:
    """Batch rows evaluated per second with `concurrent` trajectories, each replaced as soon as it is finished."""
    engine = Engine({model.card.name: model}, concurrent)
    _run_turns(engine, model, requests, concurrent, warm_up)
    began = time.perf_counter()
    rows = _run_turns(engine, model, requests, concurrent, seconds)
    return rows / (time.perf_counter() - began)


def _run_turns(
    engine: Engine, model: ServedModel, requests: Iterator[ImageRequest], concurrent: int, seconds: float
) -> int:
    end, rows = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        while len(engine.batch) < concurrent:
            engine.batch.admit(trajectories(_job(model, next(requests)), model))
        rows += engine.step().rows
    return rows


def _job(model: ServedModel, image: ImageRequest) -> JobRecord:
    request = SamplingRequest(
        model=model.card.name,
        label=image.label,
        label_name=None,
        n=1,
        seed=image.seed,
        sampler="ddim",
        steps=image.steps,
        eta=0.0,
        guidance_scale=GUIDANCE if image.guided else 1.0,
        format="png",
    )
    return JobRecord(id=f"bench-{image.seed}-{image.steps}", owner="", request=request, created_at=0.0)
