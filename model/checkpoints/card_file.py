"""`model_card.json`: the facts about a model that diffusers' own files have no place for.

Imports no torch: `model.serving.card`, which the HTTP front end uses, builds on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from denoised.command_line.rejected_values import describe_error, describe_unknown_name
from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.atomic import write_text_atomically
from denoised.model.checkpoints.text_to_image.prompt_guide import PromptGuide
from denoised.model.errors import CheckpointError, abbreviate, shorten

CARD_FILE = "model_card.json"
# Of `GET /models`, where every line is published.
_Text = Annotated[str, Field(max_length=2000)]


class Defaults(BaseModel):
    """The values of a request that leaves them out.

    Attributes:
        sampler: one of the model's samplers.
        steps: at least 1; at most the training timesteps.
        guidance_scale: 1 … 20; 1 means no guidance.
        guidance_rescale: φ, 0 … 1; 0 means no rescaling.
        guidance_interval: the noise levels σ/α, low and high, between which guidance is on; null: all. It applies to
            requests that leave out `guidance_scale`.
        spacing: of the noise levels; null: as the scheduler's file says. It applies with the three below to requests
            that leave out `sampler` and name no levels.
        sigma_min, sigma_max: the lowest and the highest noise level σ/α; null: those of the spacing.
        sigmas: the noise levels themselves, falling, for requests that leave out `steps`, too; null: by the spacing.
    """

    model_config = ConfigDict(extra="forbid")

    sampler: str = "ddim"
    steps: int = Field(default=50, ge=1)
    guidance_scale: float = Field(default=1.0, ge=1.0, le=20.0)
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0)
    guidance_interval: tuple[float, float] | None = None
    spacing: str | None = None
    sigma_min: float | None = Field(default=None, ge=0.0)
    sigma_max: float | None = Field(default=None, ge=0.0)
    sigmas: list[FiniteFloat] | None = Field(default=None, min_length=1, max_length=1000)

    @field_validator("guidance_interval")
    @classmethod
    def _rises(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and not 0 <= interval[0] < interval[1] < float("inf"):
            raise ValueError("not a low level of at least 0 and a higher one")
        return interval


class LearnedLevels(BaseModel):
    """Noise levels that were fitted to a model (`denoised learn-levels`): what the spacing `learned` means.

    Attributes:
        sampler: the sampler that they were fitted for.
        sigmas: the noise levels σ/α, falling, without the 0 at the end; a run of as many steps visits them.
    """

    model_config = ConfigDict(extra="forbid")

    sampler: str
    sigmas: list[FiniteFloat] = Field(min_length=1, max_length=100)

    def fits(self, sampler: str, steps: int) -> bool:
        """Whether a run with this sampler and number of steps can visit them."""
        return (self.sampler, len(self.sigmas)) == (sampler, steps)


def learned_sigmas(learned: Sequence[LearnedLevels], sampler: str, steps: int) -> list[float] | None:
    """The levels of the spacing `learned`; None if none were fitted for this sampler and number of steps."""
    return next((each.sigmas for each in learned if each.fits(sampler, steps)), None)


class CardFile(BaseModel):
    """`model_card.json`; every key may be missing.

    Attributes:
        name: what the model is called; null means its folder's name.
        description: one line for people.
        labels: class names, in the order of their indices.
        unconditional: whether the last of the U-Net's `num_class_embeds` means "no label"; null: see
            `model.checkpoints.labels`.
        default: see `Defaults`.
        learned_levels: see `LearnedLevels`; at most one list for each sampler and number of steps.
        consistency_levels: the noise levels σ/α, falling, at which a consistency model was tuned; its only sampler is
            `consistency`, and a run of N steps visits the first N. Empty for other models.
        latent_rgb: for previews of latents: the (red, green, blue) of each latent channel, in −1 … 1, and in one more
            row those of zero latents.
        data, license: what the model was trained on, and the license of its weights.
        credits: one line for each source of the data: who made it, under which license, where it is.
        prompt_guide: see `PromptGuide`.
        training: how it was trained; free form.
        evaluation: what was measured of it, with which settings; free form.
    """

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    description: _Text = ""
    labels: list[str] = []
    unconditional: bool | None = None
    default: Defaults = Defaults()
    learned_levels: list[LearnedLevels] = Field(default=[], max_length=100)
    consistency_levels: list[FiniteFloat] = Field(default=[], max_length=100)
    latent_rgb: list[tuple[FiniteFloat, FiniteFloat, FiniteFloat]] = []
    data: _Text = ""
    license: _Text = ""
    credits: list[_Text] = Field(default=[], max_length=200)
    prompt_guide: PromptGuide = PromptGuide()
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}


def write_card_file(folder: Path, card: CardFile) -> None:
    """Write the card of a model folder, complete or not at all."""
    write_text_atomically(folder / CARD_FILE, card.model_dump_json(indent=2, exclude_unset=True) + "\n")


def read_card_file(folder: Path) -> CardFile:
    """The card of a model folder; an empty one if the folder has none.

    Raises:
        CheckpointError: for a file that is not a card, naming the key and the cause.
    """
    path = folder / CARD_FILE
    if not path.exists():
        return CardFile()
    try:
        return CardFile.model_validate(read_json(path))
    except ValidationError as error:
        raise invalid_card(path, error, CardFile) from error


def invalid_card(path: Path, error: ValidationError, model: type[BaseModel]) -> CheckpointError:
    """The error for a file with invalid values, in one line: the file, the key, and the cause.

    model: what the file was read as.
    """
    first = error.errors()[0]
    where, value = ".".join(str(part) for part in first["loc"]) or "file", abbreviate(first["input"])
    if first["type"] == "extra_forbidden":
        known = _keys(model, first["loc"][:-1])
        cause = describe_unknown_name(str(first["loc"][-1]), value, known, "key of this file")
    else:
        cause = describe_error(first, value)
    return CheckpointError(f"{path}: {shorten(where)}: {shorten(cause)}")


def _keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The keys of the object at a path of keys; every one names a model."""
    for key in path:
        nested = model.model_fields[str(key)].annotation
        assert isinstance(nested, type)
        assert issubclass(nested, BaseModel)  # the others take any key
        model = nested
    return list(model.model_fields)
