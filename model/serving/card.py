"""What a model tells the world about itself: `model_card.json`, and what workers publish.

Imports no torch: the HTTP front end validates requests against these objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from denoised.model.errors import CheckpointError

CARD_FILE = "model_card.json"


class Defaults(BaseModel):
    """What a request gets that names none of it."""

    model_config = ConfigDict(extra="forbid")

    sampler: str = "ddim"
    steps: int = Field(default=50, ge=1)
    guidance_scale: float = Field(default=1.0, ge=1.0, le=20.0)
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0)


class CardFile(BaseModel):
    """`model_card.json`: the facts that diffusers' own files have no place for."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    description: str = ""
    labels: list[str] = []
    default: Defaults = Defaults()
    data: str = ""
    license: str = ""
    training: dict[str, Any] = {}


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


def read_card_file(folder: Path) -> CardFile:
    """The card in a model folder; an empty one when the folder has none.

    Raises:
        CheckpointError: when the file is there but is no card.
    """
    path = folder / CARD_FILE
    if not path.exists():
        return CardFile()
    try:
        return CardFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise CheckpointError(f"{path}: {where}: {first['msg']}") from error
