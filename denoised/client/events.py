"""The events of a job: `GET /jobs/{id}/events`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from denoised.client.images import decode_image
from denoised.client.job import FINAL_STATUSES, Job
from denoised.client.resource import Resource


@dataclass(frozen=True)
class Event(Resource):
    """Something that happened to a job. Each known type has its own class below; an unknown type is a plain `Event`.

    seq: 1, 2, 3, … within the job.
    job: the job's id.
    attempt: 1 for the first; a job restarts if its worker is lost.
    """

    seq: int
    type: str
    job: str
    attempt: int


@dataclass(frozen=True)
class JobQueued(Event):
    """The job waits (type `queued`).

    queue_position: number of jobs ahead.
    eta_seconds: estimated seconds until it finishes.
    """

    queue_position: int | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True)
class JobStarted(Event):
    """A worker started an attempt (type `started`)."""

    worker: str


@dataclass(frozen=True)
class JobProgress(Event):
    """All images of the job have reached `step` (type `progress`)."""

    step: int
    steps: int
    evaluations: int


@dataclass(frozen=True)
class Frame(Event):
    """An intermediate image (type `frame`).

    image: index of the image in the job.
    t, sigma: timestep and noise level.
    kind: `x0` = x̂_0, the network's current prediction; `xt` = x_t, the noisy image;
        `eps` = ε̂, the noise that is predicted in it, −3 … 3 as black … white.
    data: an image file of `media_type`.
    """

    image: int
    step: int
    steps: int
    t: float
    sigma: float
    kind: str
    media_type: str
    data: bytes = field(repr=False)

    @property
    def picture(self) -> Image.Image:
        """The frame, decoded."""
        return decode_image(self.data)

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        return super()._members(raw) | {"data": base64.b64decode(raw["data"])}


@dataclass(frozen=True)
class ImageFinished(Event):
    """Image `index` is finished (type `image`). `url` is the path of its file."""

    index: int
    seed: int
    sha256: str
    url: str


@dataclass(frozen=True)
class JobFinished(Event):
    """The last event (type `succeeded`, `failed` or `canceled`). `result` is the finished job."""

    result: Job

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        return super()._members(raw) | {"result": Job.from_json(raw["result"])}


EVENT_TYPES: Mapping[str, type[Event]] = {
    "queued": JobQueued,
    "started": JobStarted,
    "progress": JobProgress,
    "frame": Frame,
    "image": ImageFinished,
    **dict.fromkeys(FINAL_STATUSES, JobFinished),
}


def parse_event(raw: Any) -> Event:
    """An event as the class of its type.

    Raises:
        InvalidResponse: if it is not an event.
    """
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    return EVENT_TYPES.get(str(kind), Event).from_json(raw)
