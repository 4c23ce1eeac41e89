"""`GET /metrics`: what this process measures itself, and the state of queues, jobs and workers from Redis.

The counters of jobs and of the engine are kept in Redis, because workers come and go. Every API process reports the
same values, so take their `max` over processes, not their sum. They rise as long as the data of the store are kept.
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

from denoised.app.admission.catalog import Fleet
from denoised.app.admission.queue.queue_snapshot import QueueSnapshot
from denoised.app.services import Services, Serving
from denoised.app.webhooks.sender import OUTCOMES
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.record import TERMINAL
from denoised.jobs.worker_report import Counters, WorkerReport

router = APIRouter(tags=["operations"])

REDIS_SECONDS = 1.5  # so that the response takes less than two seconds
STATUSES = ("accepted", *TERMINAL)
PREFIX = "denoised"
# Field of `Counters` → name and help text of its metric.
ENGINE_COUNTERS = {
    "evaluations": ("evaluations", "Evaluated rows; a guided image is two where its guidance applies."),
    "turns": ("turns", "Evaluated batches."),
    "turn_seconds": ("turn_seconds", "Seconds spent in turns."),
    "images": ("turn_images", "Images that took part in turns, summed over turns."),
    "slots": ("turn_slots", "Batch slots, summed over turns."),
    "jobs": ("jobs_begun", "Jobs that workers started, including later attempts."),
    "queue_seconds": ("queue_wait_seconds", "Seconds from acceptance to start of these jobs, in total."),
}


@dataclass(frozen=True)
class SharedState:
    """The state in Redis, which every API process reports alike."""

    models: Sequence[str]
    fleet: Fleet
    queued_without_worker: bool
    snapshot: QueueSnapshot
    engine: Mapping[str, float]
    jobs: Mapping[tuple[str, str], int]
    webhooks: int

    @classmethod
    def read(cls, services: Services) -> SharedState:
        """Blocking.

        Raises:
            StoreUnavailable: when Redis does not answer in time.
        """
        models = services.catalog.known()
        engine, jobs = services.store.workers.totals()
        return cls(
            models=models,
            fleet=services.catalog.fleet(),
            queued_without_worker=services.settings.queue_without_worker,
            snapshot=services.queue.snapshot(models),
            engine=asdict(Counters()) | engine,
            jobs=jobs,
            webhooks=services.webhooks.pending(),
        )

    @property
    def workers(self) -> Sequence[WorkerReport]:
        """The live workers."""
        return self.fleet.workers

    def families(self, now: float) -> Iterator[Metric]:
        """All metrics. now: seconds since the epoch."""
        yield from self._queue(now)
        yield from self._workers()
        jobs = {(model, status): self.jobs.get((status, model), 0) for model in self.models for status in STATUSES}
        yield _counter("jobs", "Jobs by status; accepted counts all of them.", jobs, ["model", "status"])
        yield _gauge("webhooks_pending", "Webhooks that are not delivered yet.", self.webhooks)
        for name, (metric, text) in ENGINE_COUNTERS.items():
            yield _counter(metric, text, {(): self.engine[name]}, [])
        slots = self.engine["slots"]
        occupancy = self.engine["images"] / slots if slots else 0.0
        yield _gauge("batch_occupancy_ratio", "denoised_turn_images_total by denoised_turn_slots_total.", occupancy)

    def _queue(self, now: float) -> Iterator[Metric]:
        depth, work, oldest, running, drain = {}, {}, {}, {}, {}
        for model in self.models:
            waiting = self.snapshot.waiting[model]
            depth[model,] = float(len(waiting))
            work[model,] = float(sum(job.request.evaluations for job in waiting))
            oldest[model,] = max([0.0, *(now - job.created_at for job in waiting)])
            running[model,] = float(len(self.snapshot.started[model]))
            if (seconds := self.snapshot.drain_seconds(model, self.fleet.pools)) is not None:
                drain[model,] = seconds
        yield _gauges("queue_jobs", "Waiting jobs.", depth, ["model"])
        yield _gauges("queue_evaluations", "Evaluations that these need.", work, ["model"])
        yield _gauges("queue_oldest_seconds", "How long the oldest waiting job has waited.", oldest, ["model"])
        yield _gauges(
            "drain_seconds",
            "Time that the model's workers need for its waiting jobs; without any, the last one.",
            drain,
            ["model"],
        )
        yield _gauges("running_jobs", "Jobs that workers have started.", running, ["model"])

    def _workers(self) -> Iterator[Metric]:
        serving = [card["name"] for worker in self.workers for card in worker.models]
        alive = {(model,): float(serving.count(model)) for model in self.models}
        yield _gauges("workers", "Live workers that serve the model.", alive, ["model"])
        yield _gauge(
            "queue_without_worker",
            "Whether jobs are accepted for a model that has no worker now.",
            float(self.queued_without_worker),
        )
        yield _gauge("slots", "Batch slots of all live workers.", _sum(self.workers, "max_batch"))
        yield _gauge("running_images", "Images that workers have admitted.", _sum(self.workers, "trajectories"))
        yield _gauge(
            "running_evaluations", "Evaluations that these still need.", _sum(self.workers, "pending_evaluations")
        )
        speed = _sum(self.workers, "evaluations_per_second")
        yield _gauge("evaluations_per_second", "Measured speed of all live workers.", speed)


@dataclass(frozen=True, eq=False)  # a registry hashes its collectors
class ScrapeCollector(Collector):
    """The metrics of one scrape that have no instrument.

    Attributes:
        shared: None when Redis does not answer.
        listeners: open streams of this process.
        refused: requests answered with 429 by this process, by limit.
        webhook_attempts: of this process, by outcome.
        now: seconds since the epoch.
    """

    shared: SharedState | None
    listeners: int
    refused: Mapping[str, int]
    webhook_attempts: Mapping[str, int]
    now: float = field(default_factory=time.time)

    def collect(self) -> Iterator[Metric]:
        yield _gauge("redis_up", "Whether Redis answers.", float(self.shared is not None))
        yield _gauge("listeners", "Open event streams of this process.", self.listeners)
        refused = {(limit,): float(count) for limit, count in self.refused.items()}
        yield _counter("refusals", "Requests that this process answered with 429, by limit.", refused, ["limit"])
        attempts = {(outcome,): float(self.webhook_attempts[outcome]) for outcome in OUTCOMES}
        yield _counter("webhook_attempts", "Attempts of this process to deliver webhooks.", attempts, ["outcome"])
        if self.shared is not None:
            yield from self.shared.families(self.now)


@router.get(
    "/metrics",
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text format."}
    },
    response_class=Response,
    summary="Metrics for Prometheus",
)
async def metrics(services: Serving) -> Response:
    """Always 200, even while Redis is away (`denoised_redis_up 0`)."""
    shared, refused = await _shared_state(services), services.admission.refused
    scrape = ScrapeCollector(shared, services.relay.listeners, refused, services.webhooks.attempts)
    registry = CollectorRegistry()
    registry.register(scrape)
    content = generate_latest(services.metrics.registry) + generate_latest(registry)
    return Response(content, media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _shared_state(services: Services) -> SharedState | None:
    with anyio.move_on_after(REDIS_SECONDS):
        try:
            return await run_sync(partial(SharedState.read, services), abandon_on_cancel=True)
        except StoreUnavailable:
            return None
    return None


def _sum(workers: Sequence[WorkerReport], name: str) -> float:
    return float(sum(getattr(worker, name) or 0 for worker in workers))


def _gauge(name: str, text: str, value: float) -> Metric:
    return _gauges(name, text, {(): value}, [])


def _gauges(name: str, text: str, values: Mapping[Any, float], labels: Sequence[str]) -> Metric:
    """values: by tuple of label values."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _counter(name: str, text: str, values: Mapping[Any, float], labels: Sequence[str]) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family
