"""What the service answers, as small frozen objects.

Each has the members that the HTTP contract promises; `raw` is the JSON object as it came, with whatever a newer
server adds.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from PIL import Image

from denoised.client.errors import Misunderstood
from denoised.jobs.request import PictureRequest

Raw = Mapping[str, Any]
Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
TERMINAL = ("succeeded", "failed", "canceled")


@dataclass(frozen=True)
class Answer:
    """An object of the service."""

    raw: Raw = field(repr=False, compare=False, kw_only=True)

    @classmethod
    def of(cls, raw: Any) -> Self:
        """From JSON.

        Raises:
            Misunderstood: when it is no such object.
        """
        try:
            return cls(**cls._members(raw), raw=raw)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise Misunderstood(f"the server's answer is no {cls.__name__} ({error}): is it denoised?") from error

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        return {known.name: raw[known.name] for known in fields(cls) if known.name in raw and known.name != "raw"}


@dataclass(frozen=True)
class JobImage(Answer):
    """A finished picture of a job; its bytes are at `url` (`Client.image`). Image k is made from seed + k."""

    index: int
    seed: int
    width: int
    height: int
    format: str
    sha256: str
    url: str


@dataclass(frozen=True)
class Timing(Answer):
    """Seconds that a job waited and ran, None while it does; evaluations of the network, guidance twice; mean_batch:
    images that shared an evaluation with it."""

    queued: float | None
    running: float | None
    evaluations: int
    mean_batch: float | None


@dataclass(frozen=True)
class JobError(Answer):
    """Why a job failed: `code` for programs, `message` for people."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Job(PictureRequest, Answer):
    """A job, queued → running → succeeded | failed | canceled, with the fields of its request.

    step: what all of its images have reached, of `steps`. Times are seconds since the epoch; eta_seconds until it is
    done; queue_position counts jobs ahead of it.
    """

    id: str
    status: Status
    label: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    queue_position: int | None
    eta_seconds: float | None
    step: int
    attempt: int
    images: tuple[JobImage, ...]
    timing: Timing
    error: JobError | None
    numerics: str | None = None

    @property
    def over(self) -> bool:
        return self.status in TERMINAL

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        parts = {
            "step": raw["progress"]["step"],
            "images": tuple(JobImage.of(image) for image in raw["images"]),
            "timing": Timing.of(raw["timing"]),
            "error": JobError.of(raw["error"]) if raw["error"] else None,
        }
        return super()._members(raw) | parts


@dataclass(frozen=True)
class Defaults(Answer):
    """What a request gets that names none of it."""

    sampler: str
    steps: int
    guidance_scale: float
    guidance_rescale: float = 0.0


@dataclass(frozen=True)
class Model(Answer):
    """A model that live workers serve. timesteps: the most `steps`; max_images: the most `n`."""

    name: str
    width: int
    height: int
    channels: int
    labels: tuple[str, ...]
    timesteps: int
    prediction_type: str
    samplers: tuple[str, ...]
    default: Defaults
    max_images: int
    numerics: str
    workers: int

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        parts = {
            "labels": tuple(raw["labels"]),
            "samplers": tuple(raw["samplers"]),
            "default": Defaults.of(raw["default"]),
        }
        return super()._members(raw) | parts


@dataclass(frozen=True)
class Verification(Answer):
    """A picture beside the one that its own request makes now. reason: why the bytes differ, None when they do not."""

    match: bool
    pixels_match: bool
    reason: str | None
    sha256: str
    expected_sha256: str
    request: Raw
    job: str


@dataclass(frozen=True)
class Waiting(Answer):
    """What waits for a model: jobs, and the evaluations of the network that they will take."""

    model: str
    jobs: int
    evaluations: int


@dataclass(frozen=True)
class Worker(Answer):
    """A live worker at `reported_at`: images in its batch, the evaluations that they still need, and what it has done
    since it started (`evaluations` in `turns` that took `turn_seconds`, with `images` of the `lanes` that there were;
    `jobs` begun)."""

    name: str
    models: tuple[str, ...]
    max_batch: int
    trajectories: int
    pending_evaluations: int
    reported_at: float
    evaluations: int
    turns: int
    images: int
    lanes: int
    turn_seconds: float
    jobs: int

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        return super()._members(raw) | {"models": tuple(raw["models"])}


@dataclass(frozen=True)
class Fleet(Answer):
    """`GET /workers`: what waits, and who works, at one moment (seconds since the epoch)."""

    at: float
    waiting: tuple[Waiting, ...]
    workers: tuple[Worker, ...]

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        parts = {
            "waiting": tuple(Waiting.of(queue) for queue in raw["waiting"]),
            "workers": tuple(Worker.of(worker) for worker in raw["workers"]),
        }
        return super()._members(raw) | parts


@dataclass(frozen=True)
class Event(Answer):
    """Something that happened to a job; `seq` rises by one. Each type of event is a class of its own, below; one that
    this client does not know is just an `Event`."""

    seq: int
    type: str
    job: str
    attempt: int


@dataclass(frozen=True)
class Queued(Event):
    """It waits: how many jobs are ahead, and seconds until it is done."""

    queue_position: int | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True)
class Started(Event):
    """A worker has begun an attempt."""

    worker: str


@dataclass(frozen=True)
class Progress(Event):
    """All of its images have reached `step`."""

    step: int
    steps: int
    evaluations: int


@dataclass(frozen=True)
class Frame(Event):
    """An intermediate picture of image `image`: `x0`, what the network now believes, or `xt`, the noisy picture itself,
    at timestep t and noise level sigma. data: the bytes of a file of `media_type`."""

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
        return opened(self.data)

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        return super()._members(raw) | {"data": base64.b64decode(raw["data"])}


@dataclass(frozen=True)
class Made(Event):
    """Picture `index` is finished (the event's type is `image`)."""

    index: int
    seed: int
    sha256: str
    url: str


@dataclass(frozen=True)
class Ended(Event):
    """The last event: succeeded, failed or canceled, with the job as it ended."""

    result: Job

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        return super()._members(raw) | {"result": Job.of(raw["result"])}


TYPES: Mapping[str, type[Event]] = {
    "queued": Queued,
    "started": Started,
    "progress": Progress,
    "frame": Frame,
    "image": Made,
    **dict.fromkeys(TERMINAL, Ended),
}


def event_of(raw: Any) -> Event:
    """An event of the class that its type stands for.

    Raises:
        Misunderstood: when it is no event.
    """
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    return TYPES.get(str(kind), Event).of(raw)


def opened(data: bytes) -> Image.Image:
    """The picture in a PNG, WebP or JPEG file, loaded.

    Raises:
        Misunderstood: when there is none.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "WEBP", "JPEG"])
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise Misunderstood(f"the server sent no picture ({error})") from error
    return image
