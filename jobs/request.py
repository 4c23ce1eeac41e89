"""The request for pictures. Every field is defined here, once: its type, range, default and meaning.

`RequestFields` is what a client may send. `PictureRequest` is the same request with every default filled in; the store
and the workers know it as `jobs.sampling_request.SamplingRequest`. Everything else that lists fields is derived from
these: the body of `POST /generate` and its OpenAPI schema, the job object, the parameters in a PNG, the signature of
`denoised.Client.generate`, the options of `denoised generate` and the form of the page. `docs/architecture.md` says
how to add a field.

Imports only the standard library and `jobs.request_field`, `jobs.request_choices`, `jobs.lora` and `jobs.control`,
because the client shares this file with the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import Annotated, Any, TypedDict

from denoised.jobs.control import MAX_CONTROLS, Control, ControlFields
from denoised.jobs.lora import MAX_LORAS, Lora, LoraFields
from denoised.jobs.request_choices import (
    FORMAT_MEANINGS,
    PREVIEWS,
    PRIORITIES,
    SPACINGS,
    Format,
    PreviewKind,
    Priority,
    Spacing,
)
from denoised.jobs.request_field import RequestField, fields_of

MAX_SEED = 2**53 - 1  # of any image; a JavaScript number represents every integer up to it exactly
MAX_PROMPT = 2000  # characters
MAX_SIGMA = 1e9  # of the noisiest level; a model's own range is narrower
MAX_LEVELS = 1000
MAX_WEBHOOK = 2000  # characters of a URL
PictureSource = str | bytes | PathLike[str]
"""A picture in the client: a file's path or its bytes, or a text that the server reads. The body has a text."""
MAX_PICTURE_TEXT = 12 * 1024 * 1024  # characters of a picture in base64; the body of a request is smaller
DEFAULT_STRENGTH = 0.8
DEFAULT_MIX = 0.5


class RequestFields(TypedDict, total=False):
    """The fields that a client may send. A field that is left out, or None, takes its default."""

    model: Annotated[
        str | None,
        RequestField("name of a served model; the first that fits if left out", min_length=1, max_length=200),
    ]
    label: Annotated[
        str | int | None,
        RequestField("class name or class index; unconditional if left out", max_length=200, input=True),
    ]
    prompt: Annotated[
        str | None,
        RequestField("what the picture shows, in words", max_length=MAX_PROMPT, input=True),
    ]
    negative_prompt: Annotated[
        str | None,
        RequestField("what the picture should not show; takes effect with guidance", max_length=MAX_PROMPT, input=True),
    ]
    loras: Annotated[
        list[LoraFields] | None,
        RequestField(
            "low-rank adapters (LoRA) of the model", "Adapters", max_length=MAX_LORAS, input=True, flag="--lora"
        ),
    ]
    controls: Annotated[
        list[ControlFields] | None,
        RequestField(
            "ControlNets of the model, each with its control picture",
            "ControlNets",
            max_length=MAX_CONTROLS,
            input=True,
            flag="--control",
        ),
    ]
    clip_skip: Annotated[
        int | None,
        RequestField("number of last layers of the text encoder to skip; 0 = none", "CLIP skip", ge=0, input=True),
    ]
    emphasis: Annotated[
        bool | None,
        RequestField("read (word), [word] and (word:1.3) in prompts as weights of words", "Emphasis", input=True),
    ]
    width: Annotated[int | None, RequestField("width in pixels; the model's own if left out", ge=1, input=True)]
    height: Annotated[int | None, RequestField("height in pixels; the model's own if left out", ge=1, input=True)]
    image: Annotated[
        PictureSource | None,
        RequestField(
            "picture to start from: a PNG, JPEG or WebP in base64, or job:ID/images/K of your own",
            "Picture",
            min_length=1,
            max_length=MAX_PICTURE_TEXT,
            input=True,
            is_picture=True,
        ),
    ]
    strength: Annotated[
        float | None,
        RequestField(
            "how far to go from the picture: 1 = as without it, 0 = the picture itself", ge=0, le=1, input=True
        ),
    ]
    mask: Annotated[
        PictureSource | None,
        RequestField(
            "picture that is white where the image is made anew and black where it is kept",
            min_length=1,
            max_length=MAX_PICTURE_TEXT,
            input=True,
            is_picture=True,
        ),
    ]
    n: Annotated[
        int | None,
        RequestField("number of images, up to the model's max_images", "Number of pictures", ge=1, flag="-n"),
    ]
    seed: Annotated[
        int | None,
        RequestField("seed of the first image; image k uses seed + k; drawn if left out", ge=0, le=MAX_SEED),
    ]
    seed_to: Annotated[
        int | None,
        RequestField("seed whose first noise is mixed into that of each image", "Second seed", ge=0, le=MAX_SEED),
    ]
    mix: Annotated[
        float | None,
        RequestField("how much of the second seed's noise is mixed in; 0 = none, 1 = it alone", ge=0, le=1),
    ]
    variation: Annotated[
        str | None,
        RequestField("job:ID/images/K of your own, to vary: its request, with part of its noise", max_length=200),
    ]
    sampler: Annotated[
        str | None, RequestField("one of the model's samplers", min_length=1, max_length=50, of_model=True)
    ]
    steps: Annotated[
        int | None, RequestField("sampling steps, up to the model's training timesteps", ge=1, of_model=True)
    ]
    eta: Annotated[
        float | None,
        RequestField("fresh noise in each step; 0 = none", "Fresh noise η", ge=0, le=1, samplers="eta_samplers"),
    ]
    guidance_scale: Annotated[
        float | None,
        RequestField(
            "strength of the label or the prompt; 1 = off; needs one of them", "Guidance", ge=1, le=20, of_model=True
        ),
    ]
    image_guidance_scale: Annotated[
        float | None,
        RequestField(
            "strength of the picture, for models that edit one; 1.5 if left out",
            "Picture guidance",
            ge=1,
            le=20,
            input=True,
        ),
    ]
    guidance_rescale: Annotated[
        float | None,
        RequestField(
            "how far to undo the contrast that guidance adds; 0 = off", "Guidance rescale", ge=0, le=1, of_model=True
        ),
    ]
    guidance_interval: Annotated[
        list[float] | None,
        RequestField(
            "range of noise levels σ/α, low and high, in which guidance is on; other steps take one evaluation",
            "Guidance interval",
            min_length=2,
            max_length=2,
            default_with="guidance_scale",
        ),
    ]
    spacing: Annotated[
        Spacing | None,
        RequestField(
            "spacing of the noise levels; the model's own if left out",
            "Spacing",
            samplers="spacing_samplers",
            default_with="sampler",
            meanings=SPACINGS,
        ),
    ]
    karras: Annotated[
        bool | None,
        RequestField(
            "noise levels of Karras et al. 2022; the model's own if left out",
            "Karras noise levels",
            samplers="karras_samplers",
        ),
    ]
    sigma_min: Annotated[
        float | None,
        RequestField(
            "lowest noise level σ/α; for every spacing but leading, trailing and linspace",
            "Lowest noise level",
            ge=0,
            samplers="spacing_samplers",
            default_with="sampler",
        ),
    ]
    sigma_max: Annotated[
        float | None,
        RequestField(
            "highest noise level σ/α; for every spacing but leading, trailing and linspace",
            "Highest noise level",
            ge=0,
            samplers="spacing_samplers",
            default_with="sampler",
        ),
    ]
    sigmas: Annotated[
        list[float] | None,
        RequestField(
            "the noise levels σ/α to visit, highest first, in place of steps and spacing",
            "Noise levels",
            min_length=1,
            max_length=MAX_LEVELS + 1,
            samplers="spacing_samplers",
            default_with="sampler",
        ),
    ]
    format: Annotated[
        Format | None,
        RequestField("file format; only PNG files carry their request", "File format", meanings=FORMAT_MEANINGS),
    ]
    preview_every: Annotated[int | None, RequestField("send a frame every k-th step; 0 = no frames", ge=0)]
    preview: Annotated[PreviewKind | None, RequestField("what frames show", meanings=PREVIEWS)]
    priority: Annotated[Priority | None, RequestField("order among your own jobs", meanings=PRIORITIES)]
    webhook: Annotated[
        str | None,
        RequestField(
            "URL that the job is posted to when it has ended, of a host that the operator allows",
            "Webhook",
            min_length=1,
            max_length=MAX_WEBHOOK,
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """The fields that decide what pictures look like, every default filled in: members of every job object.

    Defaults are those of the request, except where a `RequestField` says `of_model`. None stands for what the model
    was trained with. A new field needs a default with which pictures are as they were without it: a PNG leaves out
    what equals its default, so that the bytes of older requests stay the same.

    Attributes:
        image_guidance_scale: How far guidance leads toward the picture that a network edits; None for other networks.
        image, mask: Name the file that was given, as `sha256:` and its digest; the store has the pixels
            (`jobs.store.input_pictures`).
    """

    model: str
    n: int = 1
    seed: int
    seed_to: int | None = None
    mix: float = DEFAULT_MIX
    sampler: str
    steps: int
    eta: float = 0.0
    guidance_scale: float
    image_guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: list[float] | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()
    clip_skip: int = 0
    emphasis: bool = False
    width: int | None = None
    height: int | None = None
    image: str | None = None
    strength: float = DEFAULT_STRENGTH
    mask: str | None = None
    spacing: str | None = None
    karras: bool | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigmas: list[float] | None = None
    format: str = "png"

    def members(self) -> dict[str, Any]:
        """The fields of this class by name as JSON values, without those that `SamplingRequest` adds."""
        members = {each.name: getattr(self, each.name) for each in fields(PictureRequest)}
        loras, controls = [asdict(lora) for lora in self.loras], [asdict(control) for control in self.controls]
        return {**members, "loras": loras, "controls": controls}


FIELDS: Mapping[str, RequestField] = fields_of(RequestFields)
"""Every field of the request by name."""
