"""The request fields in the docstrings of the client's methods."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from denoised.jobs.request import FIELDS
from denoised.jobs.request_field import RequestField

F = TypeVar("F", bound=Callable[..., Any])

INDENT = " " * 8
WIDTH = 120


def lists_fields(method: F) -> F:
    """A decorator for a method that takes request fields: its docstring ends with the list of them."""
    return lists_fields_of(FIELDS)(method)


def lists_fields_of(fields: Mapping[str, RequestField]) -> Callable[[F], F]:
    """`lists_fields` for other fields."""

    def decorated(method: F) -> F:
        lines = [f"{name}: {_meaning(field)}" for name, field in fields.items()]
        filled = (textwrap.fill(line, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT) for line in lines)
        listed = "\n".join(filled)
        method.__doc__ = f"{(method.__doc__ or '').rstrip()}\n\n{listed}\n{INDENT}"
        return method

    return decorated


def _meaning(field: RequestField) -> str:
    return f"{field.meaning} ({field.limits})" if field.limits else field.meaning
