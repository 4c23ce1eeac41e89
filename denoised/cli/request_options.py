"""The options of `denoised generate` that are fields of the request, derived from `denoised.jobs.request`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_origin

from denoised.cli.offered_values import LISTED, completion
from denoised.command_line.options import env
from denoised.jobs.request_field import RequestField
from denoised.jobs.sampling_request import DEFAULTS

PLAIN = (int, float, bool)
METAVARS = {"loras": "NAME[:WEIGHT]", "controls": "NAME=FILE[:SCALE]", "image": "FILE", "mask": "FILE"}
MEANINGS = {"image": "file of the picture to start from, or job:ID/images/K"}  # where the command line differs


def with_request_options(fields: Mapping[str, RequestField]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for a command that takes `**given`: its help lists an option for each field, before its own."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [_option(field) for field in fields.values()]
        keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*options, *own)]
        command.__signature__ = signature.replace(parameters=keyword_only)  # type: ignore[attr-defined]
        return command

    return decorated


def _option(field: RequestField) -> inspect.Parameter:
    """`--name`, or DENOISED_NAME. The server checks the range of the value, since it may depend on the model."""
    option = field.name.replace("_", "-")
    flag = field.flag or (f"--{option}/--no-{option}" if field.type is bool else f"--{option}")
    default = DEFAULTS.get(field.name)
    notes = [field.limits] if field.limits else []
    if default not in (None, ()):
        notes.append(f"default: {_spelled(default)}")
    meaning = MEANINGS.get(field.name, field.meaning)
    help = f"{meaning} ({'; '.join(notes)})" if notes else meaning
    repeatable = get_origin(field.type) is list and not field.is_numbers  # numbers are one text with commas
    kind = field.type if field.type in PLAIN else list[str] if repeatable else str
    variable = field.flag.removeprefix("--") if repeatable else field.name
    limits: dict[str, Any] = {"metavar": METAVARS[field.name]} if field.name in METAVARS else {}
    if field.name in LISTED:
        limits["autocompletion"] = completion(field.name)
    annotated: Any = Annotated
    annotation = annotated[kind | None, env(variable.upper(), help, flag, **limits)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _spelled(default: Any) -> str:
    """A default as a command line spells it."""
    return ("on" if default else "off") if isinstance(default, bool) else f"{default}"
