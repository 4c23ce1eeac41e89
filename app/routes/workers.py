"""`GET /workers`: what waits, and what the workers do, for people who look after a service."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
    """What waits for a model, everybody's."""

    model: str
    jobs: int
    evaluations: Annotated[int, Field(description="of the network that these jobs will take, guidance twice")]


class WorkerObject(BaseModel):
    """A live worker. From `max_batch` on are counts of now, from `evaluations` on such since it started."""

    name: Annotated[str, Field(description="drawn when it starts; tells nothing of where it runs")]
    models: list[str]
    reported_at: Annotated[float, Field(description="when all of this was so")]
    max_batch: Annotated[int, Field(description="images that an evaluation holds")]
    trajectories: Annotated[int, Field(description="images in its batch, also those that await their turn")]
    pending_evaluations: Annotated[int, Field(description="that these still need")]
    evaluations: Annotated[int, Field(description="rows that went through the network, guidance twice")]
    turns: Annotated[int, Field(description="in which that happened: evaluations / turns is how full they were")]
    images: Annotated[int, Field(description="that took part in these turns")]
    lanes: Annotated[int, Field(description="that there were for them: images / lanes is the share that was used")]
    turn_seconds: float
    jobs: Annotated[int, Field(description="that it began")]
    queue_seconds: Annotated[float, Field(description="that these had waited")]


class FleetObject(BaseModel):
    """`GET /workers`. Rates are differences of two of these."""

    at: Annotated[float, Field(description="seconds since the epoch")]
    waiting: Annotated[list[QueueObject], Field(description="every model that is served or waited for")]
    workers: list[WorkerObject]


@router.get("/workers", responses={200: {"model": FleetObject}}, summary="What waits, and what the workers do")
def workers(services: Serving) -> Response:
    """The queues as they are, the workers as they last reported (every second or so)."""
    fleet = services.catalog.fleet()
    served = {card["name"] for report in fleet.workers for card in report.models}
    queues = services.queue.look(fleet.known).waiting
    waiting = [_queue(model, jobs) for model, jobs in queues.items() if jobs or model in served]
    return JSONResponse(
        {"at": time.time(), "waiting": waiting, "workers": [_worker(report) for report in fleet.workers]}
    )


def _queue(model: str, jobs: Sequence[JobRecord]) -> dict[str, Any]:
    return {"model": model, "jobs": len(jobs), "evaluations": sum(job.request.evaluations for job in jobs)}


def _worker(report: WorkerReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "models": [card["name"] for card in report.models],
        "reported_at": report.reported_at,
        "max_batch": report.max_batch,
        "trajectories": report.trajectories,
        "pending_evaluations": report.pending_evaluations,
        **asdict(Counters()),
        **report.counters,
    }
