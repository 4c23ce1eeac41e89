"""A sampling request with every default filled in. No torch, no Redis, no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FORMATS = ("png", "webp", "jpeg")
MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}


@dataclass(frozen=True)
class SamplingRequest:
    """A validated request: every default filled in, `label` a class index with its name beside it."""

    model: str
    label: int | None
    label_name: str | None
    n: int
    seed: int
    sampler: str
    steps: int
    eta: float
    guidance_scale: float
    format: str
    preview_every: int = 0
    preview: str = "x0"
    guidance_rescale: float = 0.0
    spacing: str | None = None
    karras: bool | None = None
    stages: int = 1

    @property
    def evaluations(self) -> int:
        """Network calls that the whole job takes, guidance counted as two."""
        rows = self.stages * (self.steps - 1) + 1
        return self.n * rows * (2 if self.guidance_scale != 1.0 else 1)

    def parameters(self, index: int, numerics: str) -> dict[str, Any]:
        """What image `index` was made from, as a request that makes it again.

        Nothing in it tells how it was asked for (alone or as one of n, with or without
        previews): image k of a job and a job of its own with seed + k are the same bytes.
        """
        return {
            "model": self.model,
            "label": self.label_name,
            "n": 1,
            "seed": self.seed + index,
            "sampler": self.sampler,
            "steps": self.steps,
            "eta": self.eta,
            "guidance_scale": self.guidance_scale,
            "guidance_rescale": self.guidance_rescale,
            "spacing": self.spacing,
            "karras": self.karras,
            "format": self.format,
            "numerics": numerics,
        }
