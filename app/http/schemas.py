"""What clients send and receive, for validation and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt, StrictStr, field_validator

from denoised.model.serving.card import ModelCard

MAX_SEED = 2**53 - 1  # of any image: the largest number that JavaScript tells from its neighbours
DEFAULTS: dict[str, JsonValue] = {"n": 1, "format": "png", "preview_every": 0, "preview": "x0"}  # of no model

EXAMPLES: list[JsonValue] = [
    {"label": "sneaker", "seed": 7},
    {"label": "ankle boot", "n": 4, "steps": 50, "guidance_scale": 3.0, "preview_every": 5, "preview": "both"},
    {"label": None, "sampler": "ddpm", "steps": 200, "format": "webp"},
]


def number(value: object) -> object:
    """A JSON number, never a string or a boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("input should be a number")
    return value


class GenerateRequest(BaseModel):
    """`POST /generate`. What is left out, or null, takes its default: the model's, if it is not said here."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": EXAMPLES})

    model: Annotated[StrictStr | None, Field(min_length=1, max_length=200, description="a name from GET /models")] = (
        None
    )
    label: Annotated[StrictStr | StrictInt | None, Field(description="class name or index; null = unconditional")] = (
        None
    )
    n: Annotated[StrictInt | None, Field(ge=1, description="images, up to the model's max_images; 1 if left out")] = (
        None
    )
    seed: Annotated[
        StrictInt | None, Field(ge=0, le=MAX_SEED, description="image k is made from seed + k; drawn if left out")
    ] = None
    sampler: Annotated[StrictStr | None, Field(min_length=1, max_length=50)] = None
    steps: Annotated[StrictInt | None, Field(ge=1, description="up to the model's training timesteps")] = None
    eta: Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False, description="noise of ddim, 0 = none")] = None
    guidance_scale: Annotated[
        float | None, Field(ge=1, le=20, allow_inf_nan=False, description="1 = off; needs a label")
    ] = None
    guidance_rescale: Annotated[
        float | None, Field(ge=0, le=1, allow_inf_nan=False, description="0 = off; how far guidance keeps the contrast")
    ] = None
    spacing: Annotated[
        Literal["leading", "trailing", "linspace"] | None,
        Field(description="of the timesteps; the model's if left out"),
    ] = None
    karras: Annotated[
        StrictBool | None, Field(description="noise levels as Karras et al. 2022; the model's if left out")
    ] = None
    format: Annotated[Literal["png", "webp", "jpeg"] | None, Field(description="png if left out")] = None
    preview_every: Annotated[
        StrictInt | None, Field(ge=0, description="a frame every k-th step; 0 = none, if left out")
    ] = None
    preview: Annotated[Literal["x0", "xt", "both"] | None, Field(description="x̂_0, x_t or both; x0 if left out")] = None

    @field_validator("eta", "guidance_scale", "guidance_rescale", mode="before")
    @classmethod
    def _strictnumber(cls, value: object) -> object:
        return None if value is None else number(value)

    @field_validator("label", mode="before")
    @classmethod
    def _label_kind(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise ValueError("input should be a class name, a class index or null")
        if isinstance(value, str) and len(value) > 200:
            raise ValueError(f"a class name has at most 200 characters, not {len(value)}")
        return value


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


class Timing(BaseModel):
    queued: float | None
    running: float | None
    evaluations: int
    mean_batch: float | None


class ErrorObject(BaseModel):
    code: str
    message: str


class Links(BaseModel):
    self: str
    events: str
    cancel: str
    animation: str


class JobObject(BaseModel):
    """A job, queued → running → succeeded | failed | canceled."""

    id: str
    status: Literal["queued", "running", "succeeded", "failed", "canceled"]
    model: str
    label: str | None
    n: int
    seed: int
    sampler: str
    steps: int
    eta: float
    guidance_scale: float
    guidance_rescale: float
    spacing: str | None
    karras: bool | None
    format: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    queue_position: int | None
    eta_seconds: float | None
    progress: Progress
    attempt: int
    images: list[ImageObject]
    timing: Timing
    numerics: str | None
    error: ErrorObject | None
    links: Links


class JobList(BaseModel):
    jobs: list[JobObject]
    next_cursor: Annotated[str | None, Field(description="`cursor` of the next page; null on the last")]


class NumericsPair(BaseModel):
    picture: Annotated[str, Field(description="what the file says that it was made under")]
    here: Annotated[str | None, Field(description="what it was made again under")]


class Verification(BaseModel):
    """`POST /verify`: a picture beside the one that its own request makes now."""

    match: Annotated[bool, Field(description="the two files are the same bytes")]
    pixels_match: Annotated[bool, Field(description="they show the same, whatever else their files hold")]
    reason: Annotated[str | None, Field(description="why they are not the same bytes; null when they are")]
    sha256: Annotated[str, Field(description="of the file that was sent")]
    expected_sha256: Annotated[str, Field(description="of the picture made again")]
    numerics: NumericsPair
    request: Annotated[dict[str, JsonValue], Field(description="as the file carries it; a body for POST /generate")]
    job: Annotated[str, Field(description="which made it again; its image 0 is the picture")]


class ModelObject(ModelCard):
    """A model that live workers serve, and how many of them."""

    workers: int


class FieldError(BaseModel):
    field: str
    message: str


class ProblemObject(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: Annotated[str | None, Field(description="the `X-Request-Id` of this answer, and of its log lines")] = (
        None
    )
    errors: list[FieldError] | None = None


class Readiness(BaseModel):
    ready: bool
    reasons: list[str]
