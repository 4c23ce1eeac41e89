"""The validated request: every default of `jobs.request` filled in, and what follows from it.

The store and the workers know requests in this form. Imports only the standard library and `jobs.request`, because the
client shares this file with the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any

from denoised.jobs.request import FIELDS, PictureRequest, RequestFields
from denoised.jobs.task_request import EVALUATIONS_PER_STEP, TASK_FIELDS, Task

PRIORITIES = ("high", "normal", "low")
"""In the order in which a caller's own jobs are drawn."""


@dataclass(frozen=True, kw_only=True)
class SamplingRequest(PictureRequest):
    """A validated request, every default filled in.

    Attributes:
        label: The class index; None = unconditional.
        label_name: The class name of `label`.
        preview_every: A frame every k-th step; 0 = none.
        preview: What frames show: x0, xt, both, or all: both and the predicted noise.
        priority: Among the jobs of the same caller: high, normal or low.
        webhook: The URL that the job is posted to when it has ended, in the form of `app.webhooks.target`.
        stages: Evaluations in each step but the last, which has one.
        extra_evaluations: Evaluations of an image besides those of its steps.
        guidance_embedded: The network takes the guidance scale as an input.
        guided_evaluations: Evaluations of an image within `guidance_interval`; None: all.
        task: What is made: images, or for `POST /noise`, `/score` and `/likelihood` something else of a picture. An
            estimate of a likelihood counts as an image.
        t, sigma: The noise level of that: a timestep, or σ/α; one of them, and neither for a likelihood.
        adds_noise: Whether the seed's noise is added to the picture of a score.
        x_t: The file of the array that a score is asked for in place of a picture, as `sha256:` and its digest.
    """

    label: int | None
    label_name: str | None
    preview_every: int = 0
    preview: str = "x0"
    priority: str = "normal"
    webhook: str | None = None
    stages: int = 1
    extra_evaluations: int = 0
    guidance_embedded: bool = False
    guided_evaluations: int | None = None
    task: Task = "generate"
    t: float | None = None
    sigma: float | None = None
    adds_noise: bool = True
    x_t: str | None = None

    @property
    def guided(self) -> bool:
        """Whether guidance is on, so that each evaluation has an unconditional row too."""
        return self.guidance_scale != 1.0 and not self.guidance_embedded

    @property
    def rows_per_evaluation(self) -> int:
        """Rows that an image takes in a batch of the network: one without guidance, two with it, three with a
        guidance toward text and one toward an input image."""
        if not self.guided:
            return 1
        return 2 if self.image_guidance_scale is None else 3

    @property
    def run_steps(self) -> int:
        """The last steps of the plan that are run; all of them unless the request starts from a picture."""
        if self.task != "generate":
            return {"noise": 0, "score": 1, "likelihood": self.steps}[self.task]
        return count_run_steps(self.steps, self.strength if self.starts_from_picture else 1.0)

    @property
    def starts_from_picture(self) -> bool:
        """Whether the first noise is added to a picture; a network that takes the picture as input starts from noise
        alone."""
        return self.image is not None and self.image_guidance_scale is None

    @property
    def makes_pictures(self) -> bool:
        """Whether each image of the job ends as a picture; a likelihood is a number."""
        return self.task != "likelihood"

    @property
    def plan_rows(self) -> int:
        """Evaluations of an image, however many rows each has."""
        if self.task == "likelihood":
            return EVALUATIONS_PER_STEP * self.steps + 2
        if not self.run_steps:
            return 0
        extra = self.extra_evaluations if self.run_steps > 1 else 0
        return self.stages * (self.run_steps - 1) + 1 + extra

    def fraction(self, step: int) -> float:
        """The part of the job that is done after so many steps, 0 … 1."""
        return step / self.run_steps if self.run_steps else 1.0

    @cached_property
    def evaluations(self) -> int:
        """Evaluated rows of the whole job: one of each image and row of its plan, and more where guidance is on."""
        guided = self.plan_rows if self.guided_evaluations is None else min(self.guided_evaluations, self.plan_rows)
        return self.n * (self.plan_rows + (self.rows_per_evaluation - 1) * guided)

    def parameters(self, index: int, numerics: str) -> dict[str, Any]:
        """The request that makes image `index` again, without the fields that equal their defaults.

        How the image was asked for leaves no trace: image k of a job and the image of a job with seed + k carry the
        same parameters, with or without previews.
        """
        members = {**self.members(), "n": 1, "seed": self.seed + index}
        given = {name: value for name, value in members.items() if not _is_default(name, value)}
        if self.task != "generate":
            return self._task_parameters(given, numerics)
        return {"model": given.pop("model"), "label": self.label_name, **given, "numerics": numerics}

    def _task_parameters(self, given: Mapping[str, Any], numerics: str) -> dict[str, Any]:
        """`parameters` of another task than making images. given: members that do not equal their defaults."""
        own = {name: value for name, value in given.items() if name in TASK_FIELDS[self.task]}
        if not self.adds_noise:
            del own["seed"]
        given_point = (("x_t", self.x_t), ("t", self.t), ("sigma", self.sigma))
        level = {name: value for name, value in given_point if value is not None}
        label = {} if self.label_name is None else {"label": self.label_name}
        return {"task": self.task, "model": own.pop("model"), **label, **own, **level, "numerics": numerics}


def count_run_steps(steps: int, strength: float) -> int:
    """The steps that are run from a picture: the whole part of steps·strength, as in diffusers, but one at least unless
    the strength is 0."""
    return max(int(steps * strength), 1 if strength > 0 else 0)


DEFAULTS: Mapping[str, Any] = {
    each.name: each.default
    for each in fields(SamplingRequest)
    if each.default is not MISSING and each.name in FIELDS and not FIELDS[each.name].of_model
}
"""The defaults that do not depend on the model."""


def without_defaults(given: RequestFields) -> dict[str, Any]:
    """The fields of a request whose values differ from the defaults."""
    return {name: value for name, value in given.items() if value is not None and not _is_default(name, value)}


def _is_default(name: str, value: Any) -> bool:
    """Whether a JSON value is the default of a field; the default of a list is no item."""
    if isinstance(value, list):
        return not value
    return name in DEFAULTS and bool(value == DEFAULTS[name])
