"""What clients of the OpenAI Images API send and receive, for validation and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt, StrictStr

from denoised.app.http.request_body import body_field
from denoised.jobs.request import FIELDS, Format

EXAMPLES: list[JsonValue] = [
    {"prompt": "a sneaker, please"},
    {"prompt": "two ankle boots", "n": 2, "response_format": "url", "seed": 7},
    {"prompt": "dress", "stream": True, "partial_images": 2, "steps": 12, "guidance_scale": 2.0},
]
NO_EFFECT = "taken, and without effect"


class ImagesRequest(BaseModel):
    """`POST /v1/images/generations`. What is left out, or null, takes the model's default."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": EXAMPLES})

    prompt: Annotated[
        StrictStr,
        Field(max_length=32_000, description="names one of the model's labels in plain words; blank = unconditional"),
    ]
    model: Annotated[str | None, body_field(FIELDS["model"])] = None
    n: Annotated[int | None, body_field(FIELDS["n"])] = None
    size: Annotated[
        StrictStr | None, Field(max_length=20, description='"auto", or the size that the model has, as "28x28"')
    ] = None
    response_format: Annotated[
        Literal["url", "b64_json"] | None, Field(description="b64_json if left out; a url is fetched with the same key")
    ] = None
    output_format: Annotated[Format | None, body_field(FIELDS["format"])] = None
    stream: StrictBool | None = None
    partial_images: Annotated[
        StrictInt | None, Field(ge=0, le=3, description="pictures on the way, of a stream; 0 if left out")
    ] = None
    seed: Annotated[int | None, body_field(FIELDS["seed"])] = None
    steps: Annotated[int | None, body_field(FIELDS["steps"])] = None
    guidance_scale: Annotated[float | None, body_field(FIELDS["guidance_scale"])] = None
    background: Annotated[Literal["opaque", "auto"] | None, Field(description="pictures are opaque")] = None
    output_compression: Annotated[
        StrictInt | None, Field(ge=100, le=100, description="the quality of pictures is fixed")
    ] = None
    quality: Annotated[
        Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None,
        Field(description=f"{NO_EFFECT}: `steps` decides"),
    ] = None
    style: Annotated[Literal["vivid", "natural"] | None, Field(description=NO_EFFECT)] = None
    moderation: Annotated[Literal["low", "auto"] | None, Field(description=NO_EFFECT)] = None
    complexity: Annotated[Literal["low", "medium", "high"] | None, Field(description=NO_EFFECT)] = None
    user: Annotated[StrictStr | None, Field(max_length=1000, description="taken, and neither kept nor logged")] = None
    safety_identifier: Annotated[
        StrictStr | None, Field(max_length=1000, description="taken, and neither kept nor logged")
    ] = None


class TokenDetails(BaseModel):
    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """Nothing here is counted in tokens."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class ImageData(BaseModel):
    """One picture, as bytes or as the address of them."""

    b64_json: str | None = None
    url: str | None = None
    seed: Annotated[int, Field(description="beyond the OpenAI API: what makes it again")]


class ImagesAnswer(BaseModel):
    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: str
    size: str
    usage: Usage = Usage()


class ModelEntry(BaseModel):
    """created: 0, since nobody knows when a model was made."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "denoised"


class ModelEntries(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]


class V1ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class V1Error(BaseModel):
    """An error as the OpenAI API writes it."""

    error: V1ErrorDetail
