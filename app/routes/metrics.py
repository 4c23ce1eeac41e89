"""`GET /metrics`: what this process measured, and what Redis knows of queue, jobs and workers.

Counters of jobs and of the engine are kept in Redis, since workers come and go: they are the same from whichever API
process is asked, rise as long as the store's data live, and are to be taken once (`max`), not summed over processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.responses import Response

from denoised.app.admission.queue_snapshot import QueueSnapshot
from denoised.app.services import Services, Serving
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.record import TERMINAL
from denoised.jobs.worker_report import Counters, WorkerReport

router = APIRouter(tags=["operations"])

SCRAPE_SECONDS = 1.5  # for Redis; the answer comes within two
STATUSES = ("accepted", *TERMINAL)
PREFIX = "denoised"
ENGINE = {
    "evaluations": ("evaluations", "Rows that networks have evaluated, two an image with guidance."),
    "turns": ("turns", "Turns: evaluations of a whole batch."),
    "turn_seconds": ("turn_seconds", "Seconds that turns took."),
    "images": ("turn_images", "Images that took part in turns, summed over turns."),
    "lanes": ("turn_lanes", "Images that could have taken part, likewise."),
    "jobs": ("jobs_begun", "Jobs that workers began, those begun again included."),
    "queue_seconds": ("queue_wait_seconds", "Seconds from being accepted to being begun, of these."),
}


@dataclass(frozen=True)
class Shared:
    """What all API processes would say the same of."""

    models: Sequence[str]
    workers: Sequence[WorkerReport]
    look: QueueSnapshot
    engine: Mapping[str, float]
    jobs: Mapping[tuple[str, str], int]

    @classmethod
    def read(cls, services: Services) -> Shared:
        """Blocking.

        Raises:
            StoreUnavailable: when Redis does not answer in time.
        """
        models = services.catalog.known()
        engine, jobs = services.store.workers.totals()
        return cls(
            models=models,
            workers=services.catalog.workers(),
            look=services.queue.look(models),
            engine=asdict(Counters()) | engine,
            jobs=jobs,
        )

    def families(self, now: float) -> Iterator[Metric]:
        """now: seconds since the epoch."""
        yield from self._queue(now)
        yield from self._workers()
        jobs = {(model, status): self.jobs.get((status, model), 0) for model in self.models for status in STATUSES}
        yield _counter("jobs", "Jobs by what became of them; accepted ones are all.", jobs, ["model", "status"])
        for name, (metric, text) in ENGINE.items():
            yield _counter(metric, text, {(): self.engine[name]}, [])
        lanes = self.engine["lanes"]
        occupancy = self.engine["images"] / lanes if lanes else 0.0
        yield _gauge("batch_occupancy_ratio", "denoised_turn_images_total by denoised_turn_lanes_total.", occupancy)

    def _queue(self, now: float) -> Iterator[Metric]:
        depth, work, oldest, running = {}, {}, {}, {}
        for model in self.models:
            waiting = self.look.waiting[model]
            depth[model,] = float(len(waiting))
            work[model,] = float(sum(job.request.evaluations for job in waiting))
            oldest[model,] = max([0.0, *(now - job.created_at for job in waiting)])
            running[model,] = float(len(self.look.held[model]))
        yield _gauges("queue_jobs", "Jobs that wait.", depth, ["model"])
        yield _gauges("queue_evaluations", "Evaluations that these stand for.", work, ["model"])
        yield _gauges("queue_oldest_seconds", "How long the one that waits longest has waited.", oldest, ["model"])
        yield _gauges("running_jobs", "Jobs that workers hold.", running, ["model"])

    def _workers(self) -> Iterator[Metric]:
        serving = [card["name"] for worker in self.workers for card in worker.models]
        alive = {(model,): float(serving.count(model)) for model in self.models}
        yield _gauges("workers", "Live workers that serve a model.", alive, ["model"])
        yield _gauge("lanes", "Images that one turn of every live worker holds.", _sum(self.workers, "max_batch"))
        yield _gauge("running_images", "Images in running batches.", _sum(self.workers, "trajectories"))
        yield _gauge(
            "running_evaluations", "Evaluations until these are done.", _sum(self.workers, "pending_evaluations")
        )
        speed = _sum(self.workers, "evaluations_per_second")
        yield _gauge("evaluations_per_second", "What live workers measure of their speed.", speed)


@dataclass(frozen=True, eq=False)  # a registry wants to hash it
class Scrape(Collector):
    """One answer's part that is not instruments'. shared: None when Redis does not answer."""

    shared: Shared | None
    listeners: int
    refused: Mapping[str, int]
    now: float = field(default_factory=time.time)

    def collect(self) -> Iterator[Metric]:
        yield _gauge("redis_up", "Whether Redis answers.", float(self.shared is not None))
        yield _gauge("listeners", "Streams, and clients that wait for a job's end, at this process.", self.listeners)
        refused = {(limit,): float(count) for limit, count in self.refused.items()}
        yield _counter("refusals", "Requests answered 429 by this process, by the limit they met.", refused, ["limit"])
        if self.shared is not None:
            yield from self.shared.families(self.now)


@router.get(
    "/metrics",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' format."}},
    response_class=Response,
    summary="Metrics for Prometheus",
)
async def metrics(services: Serving) -> Response:
    """Always 200, also while Redis is away (`denoised_redis_up 0`)."""
    scrape = Scrape(await _shared(services), services.relay.listeners, services.admission.refused)
    registry = CollectorRegistry()
    registry.register(scrape)
    content = generate_latest(services.meters.registry) + generate_latest(registry)
    return Response(content, media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _shared(services: Services) -> Shared | None:
    with anyio.move_on_after(SCRAPE_SECONDS):
        try:
            return await run_sync(partial(Shared.read, services), abandon_on_cancel=True)
        except StoreUnavailable:
            return None
    return None


def _sum(workers: Sequence[WorkerReport], name: str) -> float:
    return float(sum(getattr(worker, name) or 0 for worker in workers))


def _gauge(name: str, text: str, value: float) -> Metric:
    return _gauges(name, text, {(): value}, [])


def _gauges(name: str, text: str, values: Mapping[Any, float], labels: Sequence[str]) -> Metric:
    """values: by tuples of as many label values as there are labels."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family


def _counter(name: str, text: str, values: Mapping[Any, float], labels: Sequence[str]) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family
