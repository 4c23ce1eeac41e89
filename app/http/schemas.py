"""What clients receive, for the OpenAPI document. What they send: `app.http.requests.request_body`."""

from __future__ import annotations

from collections.abc import Callable
from types import GenericAlias
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, JsonValue, create_model

from denoised.jobs.request import PictureRequest
from denoised.model.serving.card import ModelCard

M = TypeVar("M", bound=BaseModel)


def with_members(definition: type) -> Callable[[type[M]], type[M]]:
    """A class decorator that adds the fields of a dataclass to a model."""

    def extended(model: type[M]) -> type[M]:
        members: dict[str, Any] = {name: (_in_json(hint), ...) for name, hint in get_type_hints(definition).items()}
        return create_model(
            model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **members
        )

    return extended


def _in_json(hint: Any) -> Any:
    """The type of a member's JSON value: a tuple is a list there."""
    return GenericAlias(list, get_args(hint)[:1]) if get_origin(hint) is tuple else hint


class Progress(BaseModel):
    step: int
    steps: int
    fraction: float


class ImageObject(BaseModel):
    index: int
    seed: int
    width: int
    height: int
    format: str
    sha256: str
    url: str


class ArrayObject(BaseModel):
    index: Annotated[int, Field(description="of the image")]
    name: Literal["x_t", "x0", "epsilon", "score"]
    shape: Annotated[list[int], Field(description="channels, height, width")]
    dtype: Literal["float32"]
    sha256: Annotated[str, Field(description="of the .npy file")]
    url: Annotated[str, Field(description="the .npy file")]
    picture: Annotated[str, Field(description="the array as a PNG: gray is 0, white and black are ± its largest size")]


class NoiseLevelObject(BaseModel):
    t: float
    alpha: float
    sigma: float
    ratio: Annotated[float | None, Field(description="σ/α; null where α = 0")]


class ResultObject(BaseModel):
    """The numbers that a job has come to. Those of other tasks are left out."""

    space: Annotated[Literal["pixels", "latents"], Field(description="what the arrays, or the density, are of")]
    level: Annotated[NoiseLevelObject | None, Field(description="noise and score")] = None
    score_norm: Annotated[float | None, Field(description="score: ‖∇ log p‖₂")] = None
    epsilon_norm: Annotated[float | None, Field(description="score: ‖ε̂‖₂")] = None
    dimensions: Annotated[int | None, Field(description="likelihood: pixels·channels, or latents")] = None
    bits_per_dimension: Annotated[float | None, Field(description="likelihood: the mean of the estimates")] = None
    standard_error: Annotated[float | None, Field(description="likelihood: of the mean")] = None
    estimates: Annotated[list[float] | None, Field(description="likelihood: one for each probe")] = None


class Timing(BaseModel):
    queued: float | None
    running: float | None
    evaluations: int
    mean_batch: float | None


class ErrorObject(BaseModel):
    code: str
    message: str


class WarningObject(BaseModel):
    field: Annotated[str, Field(description="the field of the request that would avoid it")]
    message: str


class Links(BaseModel):
    self: str
    events: str
    cancel: str
    animation: str


@with_members(PictureRequest)
class JobObject(BaseModel):
    """A job, queued → running → succeeded | failed | canceled."""

    id: str
    status: Literal["queued", "running", "succeeded", "failed", "canceled"]
    label: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    queue_position: int | None
    eta_seconds: float | None
    progress: Progress
    attempt: int
    task: Literal["generate", "noise", "score", "likelihood"]
    t: Annotated[float | None, Field(description="the timestep that noise or a score was asked for at")]
    sigma: Annotated[float | None, Field(description="the same as a noise level σ/α")]
    x_t: Annotated[str | None, Field(description="score: the SHA-256 of the array that it was asked for")]
    images: list[ImageObject]
    arrays: Annotated[list[ArrayObject], Field(description="noise and score: what was computed for each image")]
    result: Annotated[ResultObject | None, Field(description="null until the job has ended, and for pictures alone")]
    timing: Timing
    numerics: str | None
    error: ErrorObject | None
    warnings: list[WarningObject]
    links: Links


class JobList(BaseModel):
    jobs: list[JobObject]
    next_cursor: Annotated[str | None, Field(description="`cursor` of the next page; null on the last")]


class NumericsPair(BaseModel):
    picture: Annotated[str, Field(description="the numerics that the file names")]
    here: Annotated[str | None, Field(description="the numerics that it was made again under")]


class Verification(BaseModel):
    """`POST /verify`: a picture compared with the one that its own request makes now."""

    match: Annotated[bool, Field(description="the two files are the same bytes")]
    pixels_match: Annotated[bool, Field(description="the two pictures are the same, pixel by pixel")]
    reason: Annotated[str | None, Field(description="why the bytes differ; null if they match")]
    sha256: Annotated[str, Field(description="of the file that you sent")]
    expected_sha256: Annotated[str, Field(description="of the picture made again")]
    numerics: NumericsPair
    request: Annotated[
        dict[str, JsonValue], Field(description="the request that the file carries; a valid body for POST /generate")
    ]
    job: Annotated[str, Field(description="id of the job that made the picture again, as its image 0")]


class ModelObject(ModelCard):
    """A model that takes jobs. workers: how many live workers serve it; its jobs wait for one if there is none."""

    workers: int


class FieldError(BaseModel):
    field: str
    message: str


class ProblemObject(BaseModel):
    """A problem object as of RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: Annotated[str | None, Field(description="the `X-Request-Id` of this response and of its log lines")] = (
        None
    )
    errors: list[FieldError] | None = None


class Readiness(BaseModel):
    ready: bool
    reasons: list[str]
