"""Output of commands: results on stdout, everything else on stderr, errors as one line."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from denoised.command_line.system_errors import describe_system_error

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 1  # exit code


def escape_unencodable() -> None:
    """Escape what the encoding of stdout or stderr lacks: printing must never end a program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stdout() -> Console:
    """The console for results. Rich honours NO_COLOR, TERM=dumb and COLUMNS, and detects a terminal."""
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def stderr() -> Console:
    """The console for everything else."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


def can_redraw(console: Console) -> bool:
    """Whether lines on the console can be redrawn."""
    return console.is_terminal and not console.is_dumb_terminal


def exit_with_error(command: str, error: object, code: int = FAILED) -> NoReturn:
    """Print one line on stderr and exit."""
    print_error(command, error)
    raise typer.Exit(code)


def print_error(command: str, error: object) -> None:
    """Print an error as one line on stderr, in red on a terminal."""
    text = printable(f"{' '.join(['denoised', *command.split()])}: {describe_system_error(error)}")
    stderr().print(text, style="red", markup=False, soft_wrap=True)


def print_status(text: str) -> None:
    """Print a line on stderr that is not an error."""
    stderr().print(printable(text), markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one line of JSON on stdout."""
    typer.echo(json.dumps(value))
    sys.stdout.flush()


def printable(text: str) -> str:
    """The text with control characters replaced: files and servers may contain anything."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
