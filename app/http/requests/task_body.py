"""The bodies of `POST /noise`, `/score` and `/likelihood`, derived from the fields that `jobs.task_request` defines."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict, JsonValue, field_validator

from denoised.app.http.requests.request_body import StrictBody, check_label, with_fields
from denoised.jobs.task_request import TASK_FIELDS, PictureTask

# A black picture of one pixel: it is enlarged to the model's size.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
NOISE_EXAMPLES: list[JsonValue] = [
    {"image": PIXEL, "t": 400, "seed": 7},
    {"image": PIXEL, "sigma": 1.5, "seed": 7, "n": 4},
]
SCORE_EXAMPLES: list[JsonValue] = [
    {"image": PIXEL, "t": 400, "seed": 7, "label": "sneaker"},
    {"image": PIXEL, "sigma": 1.5},
]
LIKELIHOOD_EXAMPLES: list[JsonValue] = [{"image": PIXEL, "label": "sneaker", "steps": 50, "probes": 8}]


class TaskBody(StrictBody):
    """A request about a picture and a model's noise levels."""

    task: ClassVar[PictureTask]

    def fields(self) -> dict[str, Any]:
        """The fields that were given a value."""
        return self.model_dump(include=set(TASK_FIELDS[self.task]), exclude_none=True)

    @field_validator("label", mode="before", check_fields=False)
    @classmethod
    def _check_label(cls, value: object) -> object:
        return check_label(value)


@with_fields(TASK_FIELDS["noise"])
class NoiseRequest(TaskBody):
    """`POST /noise`. Needs `image`, and `t` or `sigma`."""

    model_config = ConfigDict(json_schema_extra={"examples": NOISE_EXAMPLES})
    task = "noise"


@with_fields(TASK_FIELDS["score"])
class ScoreRequest(TaskBody):
    """`POST /score`. Needs `image` or `x_t`, and `t` or `sigma`."""

    model_config = ConfigDict(json_schema_extra={"examples": SCORE_EXAMPLES})
    task = "score"


@with_fields(TASK_FIELDS["likelihood"])
class LikelihoodRequest(TaskBody):
    """`POST /likelihood`. Needs `image`."""

    model_config = ConfigDict(json_schema_extra={"examples": LIKELIHOOD_EXAMPLES})
    task = "likelihood"
