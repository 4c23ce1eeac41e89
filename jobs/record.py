"""A job as front end and workers share it: the request and what has become of it.

Small frozen objects and their JSON. No torch, no Redis, no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from denoised.jobs.errors import RecordError
from denoised.jobs.format import FORMAT, check_requires, parse_json, read_dataclass
from denoised.jobs.request_choices import FORMATS
from denoised.jobs.request_limits import check_limits
from denoised.jobs.sampling_request import SamplingRequest

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
ARRAY_NAMES = ("x_t", "x0", "epsilon", "score")
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
class ArrayFile:
    """Numbers that a job has computed for one of its images, stored as an .npy file of float32.

    index: of the image.
    name: one of `ARRAY_NAMES`.
    shape: (channels, height, width).
    """

    index: int
    name: str
    shape: list[int]
    sha256: str


@dataclass(frozen=True)
class RequestWarning:
    """What a client may not expect of an accepted request. field: the field that would avoid it."""

    field: str
    message: str


@dataclass(frozen=True)
class JobRecord:
    """A job as the store holds it. Times are seconds since the epoch.

    attempt: counts from 1; each start by another execution is one more.
    losses: workers in a row that were lost while they ran the job, or had no memory to start it, since it last got
        further than at any loss before.
    max_attempts: at this many losses the job fails; one loss earlier it is quarantined (`job_scripts.START`).
    watched: whether a client follows its events, now or earlier.
    digest: of the model that it was accepted for (`ModelCard.digest`); None in records that name none.
    api: the API of another program that it came through; None for our own.
    no_memory_on: the worker that ran out of memory with it; if a second worker does, the job fails.
    reserved_bytes: what the job may write in all, counted against Redis' `maxmemory` until it is over.
    inputs: the keys of the pictures that it starts from, by request field (`jobs.store.input_pictures`).
    weight: of its caller's key; callers that wait are served in proportion to it.
    arrays: what it has computed in addition to pictures.
    result: the numbers that it has come to; only of tasks other than making images.
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
    api: str | None = None
    no_memory_on: str | None = None
    warnings: tuple[RequestWarning, ...] = ()
    reserved_bytes: int = 0
    inputs: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    arrays: tuple[ArrayFile, ...] = ()
    result: Mapping[str, Any] | None = None

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
            "warnings": json.dumps([asdict(warning) for warning in self.warnings]) if self.warnings else None,
            "inputs": json.dumps(dict(self.inputs)) if self.inputs else None,
            "arrays": json.dumps([asdict(array) for array in self.arrays]) if self.arrays else None,
            "result": json.dumps(dict(self.result)) if self.result is not None else None,
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
        number = {name: _finite(name, float(flat[name])) for name in _FLOATS if name in flat}
        count = {name: _whole(name, flat[name]) for name in _INTS if name in flat}
        if flat["status"] not in get_args(Status):
            raise ValueError(f"status is {flat['status']!r:.60} (allowed: {', '.join(get_args(Status))})")
        request = read_dataclass(SamplingRequest, parse_json(flat["request"], MAX_JSON))
        check_limits(request)
        return cls(
            id=flat["id"],
            owner=flat["owner"],
            status=flat["status"],  # type: ignore[arg-type]  # checked above
            numerics=flat.get("numerics"),
            request_id=flat.get("request_id"),
            digest=flat.get("digest"),
            api=flat.get("api"),
            no_memory_on=flat.get("no_memory_on"),
            request=request,
            images=_images(flat.get("images", "[]")),
            error=_texts("error", flat["error"]) if "error" in flat else None,
            watched=flat.get("watched") == "1",
            warnings=_warnings(flat.get("warnings", "[]")),
            inputs=_texts("inputs", flat.get("inputs", "{}")),
            weight=_weight(flat.get("weight", "1")),
            arrays=_arrays(flat.get("arrays", "[]")),
            result=_result(flat["result"]) if "result" in flat else None,
            **number,  # type: ignore[arg-type]
            **count,
        )


def _finite(name: str, number: float) -> float:
    if not 0 <= number <= LATEST:
        raise ValueError(f"{name} is {number} (allowed: 0 … {LATEST:.0f})")
    return number


def _weight(text: str) -> float:
    weight = float(text)
    if not 1 / MAX_WEIGHT <= weight <= MAX_WEIGHT:
        raise ValueError(f"weight is {weight} (allowed: {1 / MAX_WEIGHT} … {MAX_WEIGHT:g})")
    return weight


def _whole(name: str, text: str) -> int:
    if not text.removeprefix("-").isdecimal() or len(text) > MAX_DIGITS:
        raise ValueError(f"{name} is {text!r:.60} (allowed: up to {MAX_DIGITS} digits)")
    return max(0, int(text))  # workers of earlier versions stored negative `evaluations` for requests without `stages`


def _images(text: str) -> tuple[Image, ...]:
    images = tuple(read_dataclass(Image, image) for image in parse_json(text, MAX_JSON))
    for image in images:
        if image.format not in FORMATS:
            raise ValueError(f"the format of an image is {image.format!r:.60} (allowed: {', '.join(FORMATS)})")
    return images


def _arrays(text: str) -> tuple[ArrayFile, ...]:
    arrays = tuple(read_dataclass(ArrayFile, array) for array in parse_json(text, MAX_JSON))
    for array in arrays:
        if array.name not in ARRAY_NAMES:
            raise ValueError(f"the name of an array is {array.name!r:.60} (allowed: {', '.join(ARRAY_NAMES)})")
        if len(array.shape) != 3 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in array.shape):
            raise ValueError(f"the shape of an array is {array.shape!r:.60} (allowed: three sides, 1 … {MAX_SIDE})")
    return arrays


def _result(text: str) -> dict[str, Any]:
    result = parse_json(text, MAX_JSON)
    if not isinstance(result, dict):
        raise ValueError("result is not an object")
    return result


def _texts(name: str, text: str) -> dict[str, str]:
    """A field that holds an object of texts."""
    texts = parse_json(text, MAX_JSON)
    if not isinstance(texts, dict):
        raise ValueError(f"{name} is not an object")
    return {str(key): str(value) for key, value in texts.items()}


def _warnings(text: str) -> tuple[RequestWarning, ...]:
    warnings = (read_dataclass(RequestWarning, warning) for warning in parse_json(text, MAX_JSON))
    return tuple(RequestWarning(str(warning.field), str(warning.message)) for warning in warnings)


MAX_WEIGHT = 1000.0
_FLOATS = ("created_at", "started_at", "finished_at", "mean_batch")
_INTS = ("attempt", "step", "evaluations", "losses", "max_attempts", "reserved_bytes")
MAX_JSON = 1 << 20  # characters of a JSON field
MAX_DIGITS = 15
MAX_SIDE = 16_384  # of an array
LATEST = 1e11  # seconds since the epoch, and any duration
_PLAIN = (
    "id",
    "owner",
    "status",
    "numerics",
    "request_id",
    "digest",
    "api",
    "no_memory_on",
    "weight",
    *_FLOATS,
    *_INTS,
)
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
    check_requires("the job", parse_json(flat.get("requires", "[]"), MAX_JSON), _REQUEST_FIELDS)


@dataclass(frozen=True)
class QueueEstimate:
    """Where a waiting job stands in its queue, and the seconds until it is done; None where that is unknown."""

    queue_position: int | None = None
    eta_seconds: float | None = None


def image_url(job: str, index: int) -> str:
    return f"/jobs/{job}/images/{index}"


def array_url(job: str, array: ArrayFile, suffix: str = "npy") -> str:
    """suffix: `npy` for the numbers, `png` for a picture of them."""
    return f"{image_url(job, array.index)}/{array.name}.{suffix}"
