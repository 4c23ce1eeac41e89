"""Everything about a job that crosses a process: what was asked, what has become of it.

Small frozen objects and their JSON. No torch, no Redis, no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from denoised.jobs.request import SamplingRequest

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
TERMINAL: tuple[Status, ...] = ("succeeded", "failed", "canceled")


@dataclass(frozen=True)
class Image:
    """A finished picture."""

    index: int
    seed: int
    width: int
    height: int
    format: str
    sha256: str


@dataclass(frozen=True)
class JobRecord:
    """A job as the store holds it. Times are seconds since the epoch.

    losses: how often in a row its worker was lost while it ran, without the job getting on in between;
    max_attempts: how many of these end it; lost_at: the most evaluations it had when that happened; watched: whether
    somebody follows its events, now or earlier.
    """

    id: str
    owner: str
    request: SamplingRequest
    created_at: float
    status: Status = "queued"
    started_at: float | None = None
    finished_at: float | None = None
    attempt: int = 1
    step: int = 0
    evaluations: int = 0
    losses: int = 0
    lost_at: int = 0
    max_attempts: int = 3
    mean_batch: float | None = None
    numerics: str | None = None
    images: tuple[Image, ...] = ()
    error: Mapping[str, str] | None = None
    request_id: str | None = None
    watched: bool = False

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def suspect(self) -> bool:
        """Whether its next loss is its last: it then runs apart, so that it takes no other job with it."""
        return self.losses > 0 and self.losses >= self.max_attempts - 1

    def to_fields(self) -> dict[str, str]:
        """The flat strings of a Redis hash; what is None is left out."""
        flat: dict[str, Any] = {
            **{name: getattr(self, name) for name in _PLAIN},
            "request": json.dumps(asdict(self.request)),
            "images": json.dumps([asdict(image) for image in self.images]),
            "error": json.dumps(dict(self.error)) if self.error else None,
            "watched": int(self.watched),
        }
        return {name: str(value) for name, value in flat.items() if value is not None}

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> JobRecord:
        """The inverse of `to_fields`."""
        number = {name: float(fields[name]) for name in _FLOATS if name in fields}
        count = {name: int(fields[name]) for name in _INTS if name in fields}
        return cls(
            id=fields["id"],
            owner=fields["owner"],
            status=fields["status"],  # type: ignore[arg-type]  # written by to_fields and the store alone
            numerics=fields.get("numerics"),
            request_id=fields.get("request_id"),
            request=SamplingRequest(**json.loads(fields["request"])),
            images=tuple(Image(**image) for image in json.loads(fields.get("images", "[]"))),
            error=json.loads(fields["error"]) if "error" in fields else None,
            watched=fields.get("watched") == "1",
            **number,  # type: ignore[arg-type]
            **count,
        )


_FLOATS = ("created_at", "started_at", "finished_at", "mean_batch")
_INTS = ("attempt", "step", "evaluations", "losses", "lost_at", "max_attempts")
_PLAIN = ("id", "owner", "status", "numerics", "request_id", *_FLOATS, *_INTS)


@dataclass(frozen=True)
class QueueEstimate:
    """Where a waiting job stands."""

    queue_position: int | None = None
    eta_seconds: float | None = None


@dataclass
class Counters:
    """What a worker has done since it started: evaluations (rows, guidance counted as two) in how many turns that
    took how many seconds, with how many images of the lanes that there were; jobs it began, and the seconds that these
    had waited since they were accepted."""

    evaluations: int = 0
    turns: int = 0
    turn_seconds: float = 0.0
    images: int = 0
    lanes: int = 0
    jobs: int = 0
    queue_seconds: float = 0.0


@dataclass(frozen=True)
class WorkerReport:
    """What a live worker tells about itself every few seconds, at `reported_at` (since the epoch).

    reserved, places: of the `RunningBatch`. paces: by model, (rows, seconds) of its turns of each size.
    """

    name: str
    models: list[dict[str, Any]]  # `ModelCard`s
    max_batch: int
    trajectories: int
    pending_evaluations: int
    evaluations_per_second: float | None
    reserved: int = 1
    places: int = 64
    paces: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)  # `Counters`
    reported_at: float = 0.0

    @classmethod
    def from_json(cls, text: str | bytes) -> WorkerReport:
        """As a worker wrote it; what a newer one has to tell beside is left out."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})


def image_url(job: str, index: int) -> str:
    return f"/jobs/{job}/images/{index}"
