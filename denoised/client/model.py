"""Served models: `GET /models`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from denoised.client.resource import Resource


@dataclass(frozen=True)
class ModelDefaults(Resource):
    """Values of the request fields that a request leaves out."""

    sampler: str
    steps: int
    guidance_scale: float
    guidance_rescale: float = 0.0
    guidance_interval: Sequence[float] | None = None
    spacing: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigmas: Sequence[float] | None = None


@dataclass(frozen=True)
class ModelPromptGuide(Resource):
    """How prompts of a model are best written.

    examples: prompts that show what the model does.
    template: the form of a prompt, such as `{subject}, {style} style`; empty if it has no parts.
    parts: the values of each placeholder of the template but `subject`.
    """

    examples: tuple[str, ...] = ()
    template: str = ""
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Model(Resource):
    """A model that takes jobs.

    width, height, channels: of its images.
    inputs: the request fields that only some models take, as far as this one takes them, such as `label` or `prompt`.
    size_multiple: what `width` and `height` are multiples of; None if the size is fixed.
    max_pixels: largest allowed width·height; None if the size is fixed.
    prompt_guide: examples of prompts, and their parts to choose from.
    loras: names of the low-rank adapters that a request can name.
    controls: names of the ControlNets that a request can name.
    labels: class names; the index of a name is the class index.
    timesteps: largest allowed `steps`.
    max_images: largest allowed `n`.
    numerics: everything that the bytes of an image depend on, apart from the request.
    digest: a hash of its weights, configs and classes; empty if the server does not name one.
    workers: number of live workers that serve it; its jobs wait if there is none.
    sampler_descriptions: what each of the samplers is good for; empty from a server of an earlier version.
    description, data, license: what its card says of it, its training data, and its license; empty if nothing.
    """

    name: str
    width: int
    height: int
    channels: int
    labels: tuple[str, ...]
    timesteps: int
    prediction_type: str
    samplers: tuple[str, ...]
    default: ModelDefaults
    max_images: int
    numerics: str
    workers: int
    digest: str = ""
    inputs: tuple[str, ...] = ()
    size_multiple: int | None = None
    max_pixels: int | None = None
    prompt_guide: ModelPromptGuide = ModelPromptGuide(raw={})
    loras: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    description: str = ""
    data: str = ""
    license: str = ""
    sampler_descriptions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        nested = {
            "labels": tuple(raw["labels"]),
            "samplers": tuple(raw["samplers"]),
            "inputs": tuple(raw.get("inputs", ["label"] if raw["labels"] else [])),
            "prompt_guide": ModelPromptGuide.from_json(raw.get("prompt_guide", {})),
            "loras": tuple(lora["name"] for lora in raw.get("loras", ())),
            "controls": tuple(control["name"] for control in raw.get("controls", ())),
            "default": ModelDefaults.from_json(raw["default"]),
        }
        return super()._members(raw) | nested
