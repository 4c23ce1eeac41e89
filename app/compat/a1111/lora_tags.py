"""Adapters in prompts, as AUTOMATIC1111's web UI writes them: `<lora:name:weight>`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from denoised.app.http.validation_errors import format_value
from denoised.jobs.lora import LoraFields
from denoised.jobs.request import FIELDS
from denoised.jobs.request_field import fields_of

_TAG = re.compile(r"<lora:([^<>:]*)((?::[^<>:]*)*)>")
_NUMBER = re.compile(r"[+-]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9})")
WEIGHT = fields_of(LoraFields)["weight"]
MAX_TAGS = FIELDS["loras"].max_length or 0
NETWORKS = ("te", "unet")  # text encoder and U-Net, which the web UI gives a weight each; here both have the same


@dataclass(frozen=True)
class TaggedPrompt:
    """A prompt without its tags.

    Attributes:
        text: What is left.
        loras: The adapters that the tags name, in order.
        errors: (field, message) of each tag that cannot be served.
    """

    text: str
    loras: list[LoraFields]
    errors: list[tuple[str, str]]


def read_tags(prompt: str) -> TaggedPrompt:
    """Read the tags of a prompt. A tag without a weight has weight 1."""
    loras: list[LoraFields] = []
    errors: list[tuple[str, str]] = []
    for tag in _TAG.finditer(prompt):
        weights = set(_weights(tag[2]))
        limits = f"allowed: <lora:NAME:WEIGHT>, one weight of {WEIGHT.ge:g} … {WEIGHT.le:g}"
        if not tag[1].strip() or len(weights) > 1 or None in weights:
            errors.append(("prompt", f"{format_value(tag[0])} is not served ({limits})"))
            continue
        loras.append({"name": tag[1].strip(), "weight": next(filter(None, weights), 0.0) if weights else 1.0})
    if len(loras) > MAX_TAGS:
        errors.append(("prompt", f"has {len(loras)} adapters (allowed: {MAX_TAGS})"))
    return TaggedPrompt(_TAG.sub("", prompt).strip(), loras, errors)


def _weights(text: str) -> Iterator[float | None]:
    """The weights of a tag, with or without a network's name; None for one that is not a number or out of range."""
    for part in text.split(":")[1:]:
        name, separator, value = part.partition("=")
        yield _number((value if separator and name.strip() in NETWORKS else part).strip())


def _number(text: str) -> float | None:
    number = float(text) if _NUMBER.fullmatch(text) else None
    return number if number is not None and (WEIGHT.ge or 0) <= number <= (WEIGHT.le or 0) else None
