"""How the training and evaluation commands report errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from denoised.command_line.console import exit_with_error
from denoised.model.errors import ModelError


@contextmanager
def report_errors(command: str) -> Iterator[None]:
    """Print a `ModelError` or `OSError` as one line on stderr, and exit with code 1."""
    try:
        yield
    except (ModelError, OSError) as error:
        exit_with_error(command, error)
