"""What a worker reports about itself. No torch, no Redis, no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any

from denoised.jobs.errors import RecordError
from denoised.jobs.format import FORMAT, check_requires, parse_json, read_dataclass


@dataclass
class Counters:
    """Totals of a worker since it started.

    evaluations: rows evaluated by the network, a guided image as two where its guidance applies.
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
    max_batch: images in a turn of the model with the most.
    reserved, places: of its `RunningBatch`, for a model that `batches` does not name.
    batches: by model, the slots of a turn, those of them that are reserved, and places.
    paces: by model, (rows, seconds) of its turns of each size.
    decode_seconds: by model of latents, for one image.
    counters: the values of `Counters`.
    reported_at: seconds since the epoch.
    states: of all models that it has, or should have: {"model", "state", "reason", "digest", "generation"}.
    device: where its networks are evaluated, such as cpu or cuda:1; "" in reports of earlier versions.
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
    batches: Mapping[str, Sequence[int]] = field(default_factory=dict)
    paces: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    decode_seconds: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    reported_at: float = 0.0
    device: str = ""
    states: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT
    requires: Sequence[str] = field(default_factory=list)

    def batch_of(self, model: str) -> tuple[int, int, int]:
        """(slots, reserved, places) of a model."""
        slots, reserved, places = self.batches.get(model, (self.max_batch, self.reserved, self.places))
        return slots, reserved, places

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> WorkerReport:
        """The inverse of `to_json`; fields of a newer version are ignored.

        Raises:
            RecordError: when it cannot be decoded, or requires a field that is unknown here.
        """
        report = read_dataclass(cls, parse_json(text, MAX_REPORT_BYTES))
        check_requires("the worker report", list(report.requires), _FIELDS)
        report._check_values()
        return report

    def _check_values(self) -> None:
        """Check what readers compute with.

        Raises:
            RecordError: naming what is wrong.
        """
        if not all(isinstance(card, dict) and isinstance(card.get("name"), str) for card in self.models):
            raise RecordError("the worker report has a model without a name")
        if not all(isinstance(each, dict) and isinstance(each.get("model"), str) for each in self.states):
            raise RecordError("the worker report has a state without a model")
        if not all(_is_count(value) for value in self.counters.values()):
            raise RecordError("the worker report has a counter that is not a number of 0 or more")
        numbers = (self.trajectories, self.pending_evaluations, self.reserved, self.evaluations_per_second or 0)
        if not all(_is_count(number) for number in (*numbers, self.reported_at)):
            raise RecordError("the worker report has a number below 0, or too large")
        if not (1 <= self.max_batch <= MAX_COUNT and 1 <= self.places <= MAX_COUNT):
            raise RecordError("the worker report has no batch slots")
        if not all(_is_batch(batch) for batch in self.batches.values()):
            raise RecordError("the worker report has batches that are not three numbers above 0")
        if not all(_is_count(seconds) for seconds in self.decode_seconds.values()):
            raise RecordError("the worker report has a decode_seconds that is not a number of 0 or more")
        if not all(_are_paces(paces) for paces in self.paces.values()):
            raise RecordError("the worker report has paces that are not pairs of rows and seconds, sorted by rows")


MAX_REPORT_BYTES = 4 << 20
MAX_COUNT = 10**15


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_batch(batch: object) -> bool:
    return isinstance(batch, list) and len(batch) == 3 and all(_is_count(each) and each >= 1 for each in batch)


def _are_paces(paces: object) -> bool:
    """Whether these are [rows, seconds] of turns, each with more rows than the one before."""
    if not isinstance(paces, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in paces):
        return False
    if not all(_is_count(rows) and rows > 0 and _is_count(seconds) for rows, seconds in paces):
        return False
    return all(fewer[0] < more[0] for fewer, more in pairwise(paces))


_FIELDS = frozenset(each.name for each in fields(WorkerReport))
