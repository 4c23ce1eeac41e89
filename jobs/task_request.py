"""The requests of `POST /noise`, `POST /score` and `POST /likelihood`: what a client may send.

They share fields with the request for pictures (`jobs.request`); the others are defined here. Imports only the standard
library and `jobs.request`, because the client shares this file with the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, TypedDict, get_args

from denoised.jobs.lora import LoraFields
from denoised.jobs.request import FIELDS, MAX_PICTURE_TEXT, PictureSource
from denoised.jobs.request_choices import Format, Priority
from denoised.jobs.request_field import RequestField, fields_of

Task = Literal["generate", "noise", "score", "likelihood"]
PictureTask = Literal["noise", "score", "likelihood"]
PICTURE_TASKS: tuple[PictureTask, ...] = get_args(PictureTask)

ARRAY = "x_t"
"""The field of `POST /score` whose value is an array."""

DEFAULT_PROBES = 4
MIN_PROBES = 2  # one has no standard error
DEFAULT_INTEGRATION_STEPS = 50
MAX_INTEGRATION_STEPS = 1000
EVALUATIONS_PER_STEP = 4  # of the integration of a likelihood, and two at its end


class NoiseFields(TypedDict, total=False):
    """The fields of `POST /noise`. A field that is left out, or None, takes its default."""

    model: str | None
    image: PictureSource | None
    t: float | None
    sigma: float | None
    n: int | None
    seed: int | None
    width: int | None
    height: int | None
    format: Format | None
    priority: Priority | None
    webhook: str | None


class ScoreFields(TypedDict, total=False):
    """The fields of `POST /score`."""

    model: str | None
    image: PictureSource | None
    x_t: PictureSource | None
    t: float | None
    sigma: float | None
    seed: int | None
    label: str | int | None
    prompt: str | None
    negative_prompt: str | None
    guidance_scale: float | None
    loras: list[LoraFields] | None
    clip_skip: int | None
    emphasis: bool | None
    width: int | None
    height: int | None
    format: Format | None
    priority: Priority | None
    webhook: str | None


class LikelihoodFields(TypedDict, total=False):
    """The fields of `POST /likelihood`."""

    model: str | None
    image: PictureSource | None
    label: str | int | None
    prompt: str | None
    loras: list[LoraFields] | None
    clip_skip: int | None
    emphasis: bool | None
    steps: int | None
    probes: int | None
    seed: int | None
    width: int | None
    height: int | None
    priority: Priority | None
    webhook: str | None


class _OwnFields(TypedDict, total=False):
    """The fields that no request for pictures has."""

    t: Annotated[
        float | None,
        RequestField("timestep, 0 … the model's timesteps − 1; fractions are allowed", "Timestep", ge=0),
    ]
    sigma: Annotated[float | None, RequestField("noise level σ/α, in place of t", "Noise level", ge=0)]
    x_t: Annotated[
        PictureSource | None,
        RequestField(
            "x_t as numbers, in place of a picture: an .npy file of float32 in base64, of the shape that the model"
            " denoises (channels, height, width)",
            "Point",
            min_length=1,
            max_length=MAX_PICTURE_TEXT,
            is_picture=True,
        ),
    ]
    probes: Annotated[
        int | None,
        RequestField(
            f"independent estimates, up to the model's max_images; {DEFAULT_PROBES} if left out",
            "Estimates",
            ge=MIN_PROBES,
        ),
    ]


_OWN = fields_of(_OwnFields)
_OF_SCORE = {
    "image": replace(FIELDS["image"], meaning="the picture; x_t itself, or x_0 if a seed is given"),
    "seed": replace(
        FIELDS["seed"], meaning="seed of the noise that is added to the picture; none is added if left out"
    ),
    "guidance_scale": replace(
        FIELDS["guidance_scale"], meaning="strength of the label or the prompt; 1 = off, the default", of_model=False
    ),
}
_OF_NOISE = {"image": replace(FIELDS["image"], meaning="the picture, x_0")}
_OF_LIKELIHOOD = {
    "image": replace(FIELDS["image"], meaning="the picture"),
    "seed": replace(FIELDS["seed"], meaning="seed of the first estimate; estimate k uses seed + k; drawn if left out"),
    "steps": replace(
        FIELDS["steps"],
        meaning=f"steps of the integration, four evaluations each; {DEFAULT_INTEGRATION_STEPS} if left out",
        le=MAX_INTEGRATION_STEPS,
        of_model=False,
    ),
}


def _fields(definition: type, own: Mapping[str, RequestField]) -> dict[str, RequestField]:
    known = {**FIELDS, **_OWN, **own}
    return {name: known[name] for name in definition.__annotations__}


TASK_FIELDS: Mapping[str, Mapping[str, RequestField]] = {
    "noise": _fields(NoiseFields, _OF_NOISE),
    "score": _fields(ScoreFields, _OF_SCORE),
    "likelihood": _fields(LikelihoodFields, _OF_LIKELIHOOD),
}
"""The fields of each request by name."""
