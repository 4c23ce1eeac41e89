"""Output of the server's commands: results on stdout, errors as one line on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 1


def stdout() -> Console:
    """The console for results. Rich honours NO_COLOR, TERM=dumb and COLUMNS."""
    from rich.console import Console

    return Console(highlight=False)


def can_redraw(console: Console) -> bool:
    """Whether lines on the console can be redrawn."""
    return console.is_terminal and not console.is_dumb_terminal


def exit_with_error(command: str, error: object) -> NoReturn:
    """Print one line on stderr and exit with code 1."""
    from rich.console import Console

    text = printable(f"denoised {command}: {error}")
    Console(stderr=True, highlight=False).print(text, style="red", markup=False, soft_wrap=True)
    raise typer.Exit(FAILED)


def print_json(value: Any) -> None:
    """Print one line of JSON on stdout."""
    typer.echo(json.dumps(value))
    sys.stdout.flush()


def printable(text: str) -> str:
    """The text with control characters replaced: files and servers may contain anything."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
