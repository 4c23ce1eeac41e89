"""`GET /workers`: the queues and the workers, for operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from denoised.app.services import Serving
from denoised.jobs.record import JobRecord
from denoised.jobs.worker_report import Counters, WorkerReport

router = APIRouter(tags=["operations"])


class QueueObject(BaseModel):
    """The jobs of all callers that wait for a model."""

    model: str
    jobs: int
    evaluations: Annotated[
        int,
        Field(description="evaluations that these jobs need; a guided image is two where its guidance applies"),
    ]


class ModelStateObject(BaseModel):
    """A model that a worker has, or should have."""

    model: str
    state: Annotated[
        str,
        Field(
            description="loading; serving; draining (its running jobs end before it is replaced or removed); waiting "
            "(for another worker); unloading and unloaded (to make room; it is loaded when jobs wait for it); failed"
        ),
    ]
    reason: Annotated[str, Field(description="why it is not served, or why the last change of its folder was refused")]
    digest: Annotated[str, Field(description="of the weights that are served")]
    generation: Annotated[int, Field(description="of the last order of an operator that the worker has followed")]


class WorkerObject(BaseModel):
    """A live worker. `max_batch` to `pending_evaluations` are current values; `evaluations` and below are totals since
    the worker started."""

    name: Annotated[str, Field(description="random; drawn when the worker starts")]
    device: Annotated[str, Field(description="where its networks are evaluated, such as cpu or cuda:1")]
    models: list[str]
    states: list[ModelStateObject]
    reported_at: Annotated[float, Field(description="when the worker reported this, by Redis' clock, as `at`")]
    max_batch: Annotated[int, Field(description="batch slots: images per evaluation")]
    trajectories: Annotated[
        int, Field(description="images that the worker has admitted, those outside the current batch included")
    ]
    pending_evaluations: Annotated[int, Field(description="network evaluations that these still need")]
    evaluations: Annotated[int, Field(description="evaluated rows; a guided image is two where its guidance applies")]
    turns: Annotated[int, Field(description="batches evaluated; evaluations / turns is their mean size")]
    images: Annotated[int, Field(description="images that took part in these turns, summed over turns")]
    slots: Annotated[int, Field(description="batch slots, summed over turns; images / slots is their occupancy")]
    turn_seconds: float
    jobs: Annotated[int, Field(description="jobs that the worker started")]
    queue_seconds: Annotated[float, Field(description="that these jobs waited, in total")]


class FleetObject(BaseModel):
    """Compute rates from the difference of two of these."""

    at: Annotated[float, Field(description="seconds since the epoch, by Redis' clock")]
    waiting: Annotated[list[QueueObject], Field(description="every model that is served or has waiting jobs")]
    workers: list[WorkerObject]


@router.get("/workers", responses={200: {"model": FleetObject}}, summary="Queues and workers")
def workers(services: Serving) -> Response:
    """The current queues, and the last report of each worker (about one per second)."""
    fleet = services.catalog.fleet()
    served = {card["name"] for report in fleet.workers for card in report.models}
    snapshot = services.queue.snapshot(fleet.known)
    waiting = [_queue_object(model, jobs) for model, jobs in snapshot.waiting.items() if jobs or model in served]
    reports = [_worker_object(report) for report in fleet.workers]
    return JSONResponse({"at": snapshot.store_time, "waiting": waiting, "workers": reports})


def _queue_object(model: str, jobs: Sequence[JobRecord]) -> dict[str, Any]:
    return {"model": model, "jobs": len(jobs), "evaluations": sum(job.request.evaluations for job in jobs)}


def _state_object(state: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: str(state.get(name, "")) for name in ("model", "state", "reason", "digest")}
    generation = state.get("generation")
    return {**texts, "generation": generation if isinstance(generation, int) else 0}


def _worker_object(report: WorkerReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "device": report.device,
        "models": [card["name"] for card in report.models],
        "states": [_state_object(each) for each in report.states],
        "reported_at": report.reported_at,
        "max_batch": report.max_batch,
        "trajectories": report.trajectories,
        "pending_evaluations": report.pending_evaluations,
        **asdict(Counters()),
        **report.counters,
    }
