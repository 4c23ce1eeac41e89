"""The card of a served model: what a worker publishes about it, and what `GET /models` returns.

Imports no torch: the HTTP front end validates requests against it.
"""

from __future__ import annotations

from pydantic import BaseModel

from denoised.model.checkpoints.card_file import Defaults


class ModelCard(BaseModel):
    """A model as a live worker serves it (`GET /models`).

    unconditional: whether it can do without a label.
    stages: evaluations a step, for the samplers with more than one; the last step is always one.
    """

    name: str
    width: int
    height: int
    channels: int
    labels: list[str]
    unconditional: bool = True
    timesteps: int
    prediction_type: str
    samplers: list[str]
    eta_samplers: list[str]
    karras_samplers: list[str] = []
    stages: dict[str, int] = {}
    default: Defaults
    max_images: int
    numerics: str

    @property
    def inputs(self) -> list[str]:
        """The request fields that condition the model; every other model refuses them."""
        return ["label"] if self.labels else []

    def class_index(self, label: str | int) -> int | None:
        """The class that a name (in any case) or an index means; None when there is none."""
        if isinstance(label, int):
            return label if 0 <= label < len(self.labels) else None
        names = [name.casefold() for name in self.labels]
        wanted = label.strip().casefold()
        return names.index(wanted) if wanted in names else None
