"""Jobs and their images: `GET /jobs/{id}`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from denoised.client.errors import JobCanceled, JobFailed
from denoised.client.resource import Raw, Resource
from denoised.jobs.control import Control
from denoised.jobs.lora import Lora
from denoised.jobs.request import PictureRequest

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
FINAL_STATUSES = ("succeeded", "failed", "canceled")


@dataclass(frozen=True)
class JobImage(Resource):
    """A finished image of a job.

    seed: the job's seed + index.
    url: path of the image file; `Client.image` fetches it.
    """

    index: int
    seed: int
    width: int
    height: int
    format: str
    sha256: str
    url: str


@dataclass(frozen=True)
class JobTiming(Resource):
    """How long a job waited and ran.

    queued: seconds in the queue; None while it waits.
    running: seconds of work; None until it finishes.
    evaluations: network evaluations so far; with guidance, two per step and image.
    mean_batch: mean batch size of those evaluations.
    """

    queued: float | None
    running: float | None
    evaluations: int
    mean_batch: float | None


@dataclass(frozen=True)
class JobError(Resource):
    """Why a job failed.

    code: for programs.
    message: for people.
    """

    code: str
    message: str


@dataclass(frozen=True)
class JobWarning(Resource):
    """What you may not expect of an accepted request.

    field: the field of the request that would avoid it.
    """

    field: str
    message: str


@dataclass(frozen=True)
class JobArray(Resource):
    """Numbers that a job has computed for one of its images.

    index: of the image.
    name: `x_t`, `x0` (x̂_0), `epsilon` (ε̂) or `score`.
    shape: channels, height, width.
    url: path of the .npy file; `Client.array` reads it.
    picture: path of a PNG: gray is 0, white and black are ± the largest magnitude.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    url: str
    picture: str

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        return super()._members(raw) | {"shape": tuple(raw["shape"])}


@dataclass(frozen=True, kw_only=True)
class Job(PictureRequest, Resource):
    """A job: queued → running → succeeded | failed | canceled. Its request's fields are members, too.

    created_at, started_at, finished_at: seconds since the epoch.
    queue_position: number of jobs ahead; None once it runs.
    eta_seconds: estimated seconds until it finishes.
    step: the step that all of its images have reached, 0 … run_steps.
    run_steps: the steps that are run; fewer than `steps` from a picture.
    task: `generate`, `noise`, `score` or `likelihood`.
    t, sigma: the noise level of noise and scores, as a timestep or as σ/α.
    x_t: the file of the array that a score was asked for, as `sha256:` and its digest.
    arrays: what noise and scores consist of besides pictures.
    result: the numbers that noise, a score or a likelihood has come to; None until then.
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
    run_steps: int
    attempt: int
    images: tuple[JobImage, ...]
    timing: JobTiming
    error: JobError | None
    numerics: str | None = None
    warnings: tuple[JobWarning, ...] = ()
    task: str = "generate"
    t: float | None = None
    sigma: float | None = None
    x_t: str | None = None
    arrays: tuple[JobArray, ...] = ()
    result: Raw | None = None

    def array(self, name: str, index: int = 0) -> JobArray:
        """An array of an image, by name.

        Raises:
            KeyError: if the job has none of that name.
        """
        for array in self.arrays:
            if (array.name, array.index) == (name, index):
                return array
        raise KeyError(f"job {self.id} ({self.status}, {self.task}) has no array {name!r} of image {index}")

    @property
    def title(self) -> str:
        """What its images show: the label or the prompt; without either, the model."""
        return self.label or self.prompt or self.model

    @property
    def is_finished(self) -> bool:
        """Whether the job succeeded, failed or was canceled."""
        return self.status in FINAL_STATUSES

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        nested = {
            "step": raw["progress"]["step"],
            "run_steps": raw["progress"]["steps"],
            "images": tuple(JobImage.from_json(image) for image in raw["images"]),
            "timing": JobTiming.from_json(raw["timing"]),
            "error": JobError.from_json(raw["error"]) if raw["error"] else None,
            "loras": tuple(Lora(**lora) for lora in raw.get("loras", ())),
            "controls": tuple(Control(**control) for control in raw.get("controls", ())),
            "arrays": tuple(JobArray.from_json(array) for array in raw.get("arrays", ())),
            "warnings": tuple(JobWarning.from_json(warning) for warning in raw.get("warnings", ())),
        }
        return super()._members(raw) | nested


def require_success(job: Job) -> Job:
    """Return a finished job if it succeeded.

    Raises:
        JobFailed, JobCanceled: if it did not.
    """
    if job.status == "canceled":
        raise JobCanceled(f"job {job.id} was canceled", job.id)
    if job.status != "succeeded":
        code, reason = (job.error.code, f": {job.error.message}") if job.error else ("unknown", "")
        raise JobFailed(f"job {job.id} failed{reason}", job.id, code)
    return job
