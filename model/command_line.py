"""How the training and evaluation commands report errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from denoised.model.errors import ModelError


@contextmanager
def report_errors(command: str) -> Iterator[None]:
    """Print a `ModelError` or `OSError` as one line on stderr, and exit with code 1."""
    try:
        yield
    except (ModelError, OSError) as error:
        print_to_stderr(f"denoised {command}: {error}")
        raise typer.Exit(1) from error


def print_to_stderr(line: str) -> None:
    """Print one line on stderr, in red on a terminal."""
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
