"""What a worker reports about itself. No torch, no Redis, no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from denoised.jobs.errors import RecordError
from denoised.jobs.format import FORMAT, check_requires, read_dataclass


@dataclass
class Counters:
    """Totals of a worker since it started.

    evaluations: rows evaluated by the network, a guided image counted as two.
    turns, turn_seconds: how many turns these took, and how long.
    images, slots: images in these turns, and the batch slots that were available to them.
    jobs: attempts started.
    queue_seconds: how long these jobs had waited since they were accepted.
    """

    evaluations: int = 0
    turns: int = 0
    turn_seconds: float = 0.0
    images: int = 0
    slots: int = 0
    jobs: int = 0
    queue_seconds: float = 0.0


@dataclass(frozen=True)
class WorkerReport:
    """What a live worker publishes every few seconds.

    models: `ModelCard`s as JSON objects; each has at least a `name`.
    reserved, places: of its `RunningBatch`.
    paces: by model, (rows, seconds) of its turns of each size.
    counters: the values of `Counters`.
    reported_at: seconds since the epoch.
    requires: names of fields that a reader has to know to make sense of the report.
    """

    name: str
    models: list[dict[str, Any]]
    max_batch: int
    trajectories: int
    pending_evaluations: int
    evaluations_per_second: float | None
    reserved: int = 1
    places: int = 64
    paces: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    reported_at: float = 0.0
    format: int = FORMAT
    requires: Sequence[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> WorkerReport:
        """The inverse of `to_json`; fields of a newer version are ignored.

        Raises:
            RecordError: when it cannot be decoded, or requires a field that is unknown here.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise RecordError(f"the worker report is not JSON: {error}") from error
        report = read_dataclass(cls, data)
        check_requires("the worker report", list(report.requires), _FIELDS)
        if not all(isinstance(card, dict) and isinstance(card.get("name"), str) for card in report.models):
            raise RecordError("the worker report has a model without a name")
        if not all(isinstance(value, int | float) for value in report.counters.values()):
            raise RecordError("the worker report has a counter that is no number")
        return report


_FIELDS = frozenset(each.name for each in fields(WorkerReport))
