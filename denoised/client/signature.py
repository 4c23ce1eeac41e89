"""The request fields in the docstrings of the client's methods."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from denoised.jobs.request import FIELDS

F = TypeVar("F", bound=Callable[..., Any])

INDENT = " " * 8
WIDTH = 120


def lists_fields(method: F) -> F:
    """A decorator for a method that takes request fields: its docstring ends with the list of them."""
    lines = [f"{name}: {_meaning(name)}" for name in FIELDS]
    listed = "\n".join(textwrap.fill(line, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT) for line in lines)
    method.__doc__ = f"{(method.__doc__ or '').rstrip()}\n\n{listed}\n{INDENT}"
    return method


def _meaning(name: str) -> str:
    field = FIELDS[name]
    return f"{field.meaning} ({field.limits})" if field.limits else field.meaning
