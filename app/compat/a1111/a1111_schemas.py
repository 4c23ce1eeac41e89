"""The requests and responses of AUTOMATIC1111's web UI, for validation and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt, StrictStr

from denoised.app.compat.a1111.refusals import UNSERVED
from denoised.app.http.requests.request_body import body_field
from denoised.jobs.request import FIELDS, MAX_PICTURE_TEXT, MAX_SEED

RANDOM_SEED = -1
MAX_COUNT = 1024
_EXAMPLES: list[JsonValue] = [
    {"prompt": "a sneaker", "seed": 7, "steps": 12, "cfg_scale": 2.0},
    {"prompt": "ankle boot", "sampler_name": "DPM++ 2M", "scheduler": "Karras", "batch_size": 2, "n_iter": 2},
]
_UNSERVED = f"refused when they are switched on: {', '.join(UNSERVED)}"
_Name = Annotated[StrictStr | None, Field(max_length=100)]


class Txt2ImgRequest(BaseModel):
    """`POST /sdapi/v1/txt2img`. A field that is left out, or null, takes the model's default."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": _EXAMPLES, "description": _UNSERVED})

    prompt: Annotated[
        StrictStr,
        Field(max_length=32_000, description="for a model of labels, it names one in plain words, or is blank"),
    ] = ""
    negative_prompt: Annotated[str | None, body_field(FIELDS["negative_prompt"])] = None
    seed: Annotated[StrictInt | None, Field(ge=RANDOM_SEED, le=MAX_SEED, description="−1: drawn by the server")] = None
    sampler_name: Annotated[_Name, Field(description="as `GET /sdapi/v1/samplers` lists them")] = None
    sampler_index: Annotated[_Name, Field(description="read if `sampler_name` is left out")] = None
    scheduler: Annotated[_Name, Field(description="as `GET /sdapi/v1/schedulers` lists them")] = None
    steps: Annotated[int | None, body_field(FIELDS["steps"])] = None
    cfg_scale: Annotated[float | None, body_field(FIELDS["guidance_scale"])] = None
    width: Annotated[int | None, body_field(FIELDS["width"])] = None
    height: Annotated[int | None, body_field(FIELDS["height"])] = None
    batch_size: Annotated[StrictInt | None, Field(ge=1, le=MAX_COUNT)] = None
    n_iter: Annotated[
        StrictInt | None, Field(ge=1, le=MAX_COUNT, description="batch_size·n_iter pictures are made at once")
    ] = None
    eta: Annotated[float | None, body_field(FIELDS["eta"])] = None
    send_images: StrictBool | None = None
    override_settings: Annotated[
        dict[str, Any] | None,
        Field(description="sd_model_checkpoint, samples_format, and others at their defaults"),
    ] = None
    alwayson_scripts: Annotated[
        dict[str, Any] | None, Field(description="`ControlNet` with its units as `args`; others must switch nothing on")
    ] = None

    @property
    def start_picture(self) -> str | None:
        """What the pictures are made from; None: noise alone."""
        return None

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that are not listed here."""
        return self.model_extra or {}

    @property
    def count(self) -> int:
        """The number of pictures."""
        return (self.batch_size or 1) * (self.n_iter or 1)


class Img2ImgRequest(Txt2ImgRequest):
    """`POST /sdapi/v1/img2img`. A field that is left out, or null, takes the model's default."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"description": _UNSERVED})

    init_images: Annotated[
        list[Annotated[StrictStr, Field(max_length=MAX_PICTURE_TEXT)]],
        Field(min_length=1, max_length=1, description="the picture to start from, in base64"),
    ]
    mask: Annotated[
        StrictStr | None,
        Field(max_length=MAX_PICTURE_TEXT, description="a picture that is white where the image is made anew"),
    ] = None
    inpainting_mask_invert: Annotated[
        StrictInt | StrictBool | None, Field(description="true or 1: black is where the image is made anew")
    ] = None
    denoising_strength: Annotated[float | None, body_field(FIELDS["strength"])] = None
    image_cfg_scale: Annotated[
        float | None,
        Field(strict=True, allow_inf_nan=False, description="for models that edit a picture; others ignore it"),
    ] = None

    @property
    def start_picture(self) -> str:
        """See `Txt2ImgRequest`."""
        return self.init_images[0]


class Txt2ImgResponse(BaseModel):
    """The pictures."""

    images: Annotated[list[str], Field(description="base64; empty if `send_images` is false")]
    parameters: Annotated[dict[str, JsonValue], Field(description="the request, completed by the values used")]
    info: Annotated[str, Field(description="a JSON object with all_seeds, all_prompts, infotexts and others")]


class ProgressState(BaseModel):
    """How far a job is. job: its id; empty if none runs."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressResponse(BaseModel):
    """The progress of the caller's job; all zero if it has none."""

    progress: Annotated[float, Field(description="0 … 1")] = 0.0
    eta_relative: Annotated[float, Field(description="seconds until it is done; 0 if unknown")] = 0.0
    state: ProgressState = ProgressState()
    current_image: Annotated[str | None, Field(description="the newest preview of its first picture, base64")] = None
    textinfo: str | None = None


class SamplerItem(BaseModel):
    name: str
    aliases: list[str]
    options: dict[str, str]


class SchedulerItem(BaseModel):
    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class ModelItem(BaseModel):
    """A served model. hash: the beginning of its digest; filename: its name, since folders are the operator's."""

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None


class LoraItem(BaseModel):
    name: str
    alias: str
    path: str
    metadata: dict[str, JsonValue]


class ScriptList(BaseModel):
    """Names of scripts, in lower case."""

    txt2img: list[str]
    img2img: list[str]


class ScriptInfo(BaseModel):
    name: str
    is_alwayson: bool
    is_img2img: bool
    args: list[JsonValue]


class ControlModelList(BaseModel):
    """The ControlNets that some served model offers."""

    model_list: Annotated[list[str], Field(description="`name [hash]`")]


class ControlModuleList(BaseModel):
    """The preprocessors of control pictures."""

    module_list: list[str]


class ErrorItem(BaseModel):
    loc: list[str]
    msg: str
    type: str


class WebUIError(BaseModel):
    """An error in the format of AUTOMATIC1111's web UI."""

    error: str
    detail: Annotated[str | list[ErrorItem], Field(description="a list for invalid requests (422)")]
    body: str
    errors: str
