"""Queues and workers: `GET /workers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from denoised.client.model_order import ModelState
from denoised.client.resource import Resource


@dataclass(frozen=True)
class QueueStatus(Resource):
    """The queue of one model.

    jobs: number of waiting jobs.
    evaluations: network evaluations that they need.
    """

    model: str
    jobs: int
    evaluations: int


@dataclass(frozen=True)
class WorkerStatus(Resource):
    """The last report of a live worker. The counters grow from the start of the worker.

    trajectories: images in its batch now; at most max_batch.
    pending_evaluations: network evaluations that those images still need.
    reported_at: seconds since the epoch.
    evaluations: counter of rows evaluated.
    turns, turn_seconds: counters of turns, and of the seconds they took.
    images, slots: counters of batch slots filled, and of batch slots available, summed over the turns.
    jobs: counter of jobs started.
    states: of the models that it has, or should have; empty from earlier servers.
    device: where its networks are evaluated, such as cpu or cuda:1; "" from earlier servers.
    """

    name: str
    models: tuple[str, ...]
    max_batch: int
    trajectories: int
    pending_evaluations: int
    reported_at: float
    evaluations: int
    turns: int
    images: int
    slots: int
    turn_seconds: float
    jobs: int
    device: str = ""
    states: tuple[ModelState, ...] = ()

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        states = tuple(ModelState.from_json(state) for state in raw.get("states", ()))
        return super()._members(raw) | {"models": tuple(raw["models"]), "states": states}


@dataclass(frozen=True)
class FleetStatus(Resource):
    """The queues and the live workers at one moment.

    at: seconds since the epoch.
    waiting: one queue per model.
    """

    at: float
    waiting: tuple[QueueStatus, ...]
    workers: tuple[WorkerStatus, ...]

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        nested = {
            "waiting": tuple(QueueStatus.from_json(queue) for queue in raw["waiting"]),
            "workers": tuple(WorkerStatus.from_json(worker) for worker in raw["workers"]),
        }
        return super()._members(raw) | nested
