"""The fields of a request that concern a picture, checked against each other and against the model's card."""

from __future__ import annotations

from collections.abc import Iterator

from denoised.app.http.validation_errors import format_value
from denoised.jobs.request import RequestFields
from denoised.jobs.sampling_request import DEFAULTS
from denoised.model.serving.card import ModelCard

NEEDS_IMAGE = ("strength", "mask")  # without a picture they would have no effect


def picture_errors(given: RequestFields, card: ModelCard) -> Iterator[tuple[str, str]]:
    """Fields that need a picture, and a model that needs one. given: without those that are None."""
    if not card.pictures:
        return  # `app.admission.validation` refuses them by name
    if "image" not in given:
        for name in NEEDS_IMAGE:
            value = given.get(name)
            if value not in (None, DEFAULTS[name]):
                yield name, f"{format_value(value)} needs an image"
    if card.pictures == "edit" and "image" not in given:
        yield "image", f"is missing: {card.name} edits a picture"
    if card.pictures == "inpaint":
        for name in ("image", "mask"):
            if name not in given:
                yield name, f"is missing: {card.name} fills a part of a picture"
