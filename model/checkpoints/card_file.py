"""`model_card.json`: the facts about a model that diffusers' own files have no place for.

Imports no torch: `model.serving.card`, which the HTTP front end uses, builds on it.
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
