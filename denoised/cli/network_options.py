"""The options that name adapters, ControlNets and files of pictures."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from denoised.jobs.control import ControlFields
from denoised.jobs.lora import LoraFields

NAMED_PICTURE = re.compile("(job|sha256):")  # of a picture that the server has
WEIGHT = re.compile(r"-?[0-9]{0,9}\.?[0-9]{1,9}")


def picture_file(name: str, path: str) -> bytes:
    """The bytes of a picture's file.

    Raises:
        typer.BadParameter: naming the option.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        message = f"{path!r} cannot be read ({error.strerror})"
        raise typer.BadParameter(message, param_hint=f"--{name}") from None


def parse_lora(text: str) -> LoraFields:
    """The adapter in `NAME` or `NAME:WEIGHT`; what follows a colon is part of the name unless it is a number."""
    name, colon, weight = text.rpartition(":")
    return {"name": name, "weight": float(weight)} if colon and WEIGHT.fullmatch(weight) else {"name": text}


def parse_control(text: str) -> ControlFields:
    """The ControlNet in `NAME=FILE` or `NAME=FILE:SCALE`; FILE may also name a picture that the server has.

    Raises:
        typer.BadParameter: for a text without a file, or a file that cannot be read.
    """
    name, equals, source = text.partition("=")
    if not equals or not name or not source:
        raise typer.BadParameter(f"{text!r:.80} was given (allowed: NAME=FILE[:SCALE])", param_hint="--control")
    path, colon, scale = source.rpartition(":")
    has_scale = bool(colon and WEIGHT.fullmatch(scale))
    path = path if has_scale else source
    image = path if NAMED_PICTURE.match(path) else picture_file("control", path)
    control: ControlFields = {"name": name, "image": image}
    return {**control, "scale": float(scale)} if has_scale else control
