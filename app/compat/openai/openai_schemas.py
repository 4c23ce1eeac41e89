"""The requests and responses of the OpenAI Images API, for validation and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt, StrictStr

from denoised.app.http.requests.request_body import StrictBody, body_field
from denoised.jobs.request import FIELDS, MAX_PICTURE_TEXT
from denoised.jobs.request_choices import Format

EXAMPLES: list[JsonValue] = [
    {"prompt": "a sneaker, please"},
    {"prompt": "two ankle boots", "n": 2, "response_format": "url", "seed": 7},
    {"prompt": "dress", "stream": True, "partial_images": 2, "steps": 12, "guidance_scale": 2.0},
]
IGNORED = "accepted and ignored"


_PROMPT = Field(
    max_length=32_000,
    description="what the picture shows; for a model of labels, it names one in plain words, or is blank",
)


class PicturesRequest(StrictBody):
    """The fields that the requests for pictures share. Fields that are omitted or null take the model's default."""

    model: Annotated[str | None, body_field(FIELDS["model"])] = None
    n: Annotated[int | None, body_field(FIELDS["n"])] = None
    size: Annotated[
        StrictStr | None,
        Field(max_length=20, description='"auto", or a size that the model makes, such as "28x28"'),
    ] = None
    response_format: Annotated[
        Literal["url", "b64_json"] | None, Field(description="default b64_json; fetch a url with the same API key")
    ] = None
    output_format: Annotated[Format | None, body_field(FIELDS["format"])] = None
    stream: StrictBool | None = None
    partial_images: Annotated[
        StrictInt | None, Field(ge=0, le=3, description="intermediate pictures of a stream; default 0")
    ] = None
    seed: Annotated[int | None, body_field(FIELDS["seed"])] = None
    steps: Annotated[int | None, body_field(FIELDS["steps"])] = None
    guidance_scale: Annotated[float | None, body_field(FIELDS["guidance_scale"])] = None
    user: Annotated[StrictStr | None, Field(max_length=1000, description="accepted, neither stored nor logged")] = None


class PromptedRequest(PicturesRequest):
    """A request with a prompt, and options of OpenAI's that have little meaning here."""

    prompt: Annotated[StrictStr, _PROMPT]
    background: Annotated[Literal["opaque", "auto"] | None, Field(description="pictures are opaque")] = None
    output_compression: Annotated[StrictInt | None, Field(ge=100, le=100, description="the compression is fixed")] = (
        None
    )
    quality: Annotated[
        Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None,
        Field(description=f"{IGNORED}; `steps` sets the quality"),
    ] = None
    style: Annotated[Literal["vivid", "natural"] | None, Field(description=IGNORED)] = None
    moderation: Annotated[Literal["low", "auto"] | None, Field(description=IGNORED)] = None
    complexity: Annotated[Literal["low", "medium", "high"] | None, Field(description=IGNORED)] = None
    safety_identifier: Annotated[
        StrictStr | None, Field(max_length=1000, description="accepted, neither stored nor logged")
    ] = None


class ImagesRequest(PromptedRequest):
    """`POST /v1/images/generations`. Fields that are omitted or null take the model's default."""

    model_config = ConfigDict(json_schema_extra={"examples": EXAMPLES})


class EditRequest(PromptedRequest):
    """`POST /v1/images/edits`, a form. Fields that are omitted take the model's default."""

    image: Annotated[
        StrictStr,
        Field(max_length=MAX_PICTURE_TEXT, description="the picture, as a file; its transparent part is the mask"),
    ]
    mask: Annotated[
        StrictStr | None,
        Field(max_length=MAX_PICTURE_TEXT, description="a file that is transparent where the picture is made anew"),
    ] = None
    strength: Annotated[float | None, body_field(FIELDS["strength"])] = None
    input_fidelity: Annotated[Literal["low", "high"] | None, Field(description=f"{IGNORED}; `strength` sets it")] = None


class VariationRequest(PicturesRequest):
    """`POST /v1/images/variations`, a form. Fields that are omitted take the model's default."""

    image: Annotated[StrictStr, Field(max_length=MAX_PICTURE_TEXT, description="the picture, as a file")]
    strength: Annotated[float | None, body_field(FIELDS["strength"])] = None


class TokenDetails(BaseModel):
    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """Always zero: this server does not count tokens."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class ImageData(BaseModel):
    """One picture, as base64 or as a URL."""

    b64_json: str | None = None
    url: str | None = None
    seed: Annotated[int, Field(description="an addition to the OpenAI API: reproduces the picture")]


class ImagesResponse(BaseModel):
    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: str
    size: str
    usage: Usage = Usage()


class ModelEntry(BaseModel):
    """A model. `created` is 0, because it is unknown when a model was made."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "denoised"


class ModelEntries(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]


class OpenAIErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in the format of the OpenAI API."""

    error: OpenAIErrorDetail
