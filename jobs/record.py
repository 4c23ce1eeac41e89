"""A job as front end and workers share it: the request and what has become of it.

Small frozen objects and their JSON. No torch, no Redis, no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

from denoised.jobs.errors import RecordError
from denoised.jobs.format import FORMAT, check_requires, read_dataclass
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

    attempt: counts from 1; each start by another execution is one more.
    losses: workers lost in a row while they ran the job, since it last saved progress.
    max_attempts: at this many losses the job fails; one loss earlier it is quarantined (see `jobs.scripts.START`).
    watched: whether a client follows its events, now or earlier.
    digest: of the model that it was accepted for (`ModelCard.digest`); None in records that name none.
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
    max_attempts: int = 3
    mean_batch: float | None = None
    numerics: str | None = None
    images: tuple[Image, ...] = ()
    error: Mapping[str, str] | None = None
    request_id: str | None = None
    watched: bool = False
    digest: str | None = None

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    def to_fields(self) -> dict[str, str]:
        """The flat strings of a Redis hash; None is left out."""
        flat: dict[str, Any] = {
            **{name: getattr(self, name) for name in _PLAIN},
            "request": json.dumps(asdict(self.request)),
            "images": json.dumps([asdict(image) for image in self.images]),
            "error": json.dumps(dict(self.error)) if self.error else None,
            "watched": int(self.watched),
            "format": FORMAT,
            "requires": json.dumps(required_fields(self.request)),
        }
        return {name: str(value) for name, value in flat.items() if value is not None}

    @classmethod
    def from_fields(cls, flat: Mapping[str, str]) -> JobRecord:
        """The inverse of `to_fields`. Unknown fields are ignored, whether or not the record requires them.

        Raises:
            RecordError: when a field is missing or cannot be decoded.
        """
        try:
            return cls._read(flat)
        except KeyError as error:
            raise RecordError(f"the job record lacks {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"the job record cannot be read: {error}") from error

    @classmethod
    def _read(cls, flat: Mapping[str, str]) -> JobRecord:
        number = {name: float(flat[name]) for name in _FLOATS if name in flat}
        count = {name: int(flat[name]) for name in _INTS if name in flat}
        if flat["status"] not in get_args(Status):
            raise ValueError(f"status is {flat['status']!r:.60} (allowed: {', '.join(get_args(Status))})")
        return cls(
            id=flat["id"],
            owner=flat["owner"],
            status=flat["status"],  # type: ignore[arg-type]  # checked above
            numerics=flat.get("numerics"),
            request_id=flat.get("request_id"),
            digest=flat.get("digest"),
            request=read_dataclass(SamplingRequest, json.loads(flat["request"])),
            images=tuple(read_dataclass(Image, image) for image in json.loads(flat.get("images", "[]"))),
            error=json.loads(flat["error"]) if "error" in flat else None,
            watched=flat.get("watched") == "1",
            **number,  # type: ignore[arg-type]
            **count,
        )


_FLOATS = ("created_at", "started_at", "finished_at", "mean_batch")
_INTS = ("attempt", "step", "evaluations", "losses", "max_attempts")
_PLAIN = ("id", "owner", "status", "numerics", "request_id", "digest", *_FLOATS, *_INTS)
_REQUEST_FIELDS = frozenset(each.name for each in fields(SamplingRequest))


def required_fields(request: SamplingRequest) -> list[str]:
    """Names of the request fields that change the result if a worker ignores them: those not at their default."""
    optional = [each for each in fields(request) if each.default is not MISSING]
    return [each.name for each in optional if getattr(request, each.name) != each.default]


def check_runnable(flat: Mapping[str, str]) -> None:
    """Check that this version knows everything that a job's record requires.

    Raises:
        RecordError: when it does not.
    """
    try:
        requires = json.loads(flat.get("requires", "[]"))
    except ValueError as error:
        raise RecordError(f"requires of the job record cannot be read: {error}") from error
    check_requires("the job", requires, _REQUEST_FIELDS)


@dataclass(frozen=True)
class QueueEstimate:
    """Where a waiting job stands in its queue, and the seconds until it is done; None where that is unknown."""

    queue_position: int | None = None
    eta_seconds: float | None = None


def image_url(job: str, index: int) -> str:
    return f"/jobs/{job}/images/{index}"
