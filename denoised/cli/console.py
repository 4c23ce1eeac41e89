"""How the client's commands call a server: errors as one line and an exit code, retries, and texts for people."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import typer

from denoised.command_line.console import (
    FAILED,
    can_redraw,
    exit_with_error,
    print_status,
    printable,
)

if TYPE_CHECKING:
    from rich.console import Console

    from denoised.client import Client, ServiceError

OK = 0
# FAILED = 1: the server rejected the request, the job failed or was canceled, or a file cannot be written
USAGE = 2  # from the command-line parser, or because the server finds a value of an option invalid
UNREACHABLE = 3
BUSY = 4
INTERRUPTED = 130  # 128 + SIGINT, the shells' convention

EXIT_CODES = (
    "Exit codes: 0 success · 1 rejected, failed or canceled · 2 wrong usage · 3 no server answers · 4 the server is "
    "busy, try again later · 130 interrupted. (verify: 0 equal, 1 different, 2 error, as cmp.)"
)
UNAUTHORIZED, INVALID = 401, 422  # HTTP statuses
RETRY_SECONDS = 60.0  # how long commands retry a busy server
SHOWN_TEXT = 60  # characters of a text that may be long
UNITS = {"d": 86_400, "h": 3600, "min": 60, "s": 1}  # seconds
TOO_FEW_COLORS = ("standard", None)


def shows_pictures(console: Console) -> bool:
    """Whether the console has enough colors for an image, and an encoding that contains half-blocks."""
    colored = can_redraw(console) and not console.no_color and console.color_system not in TOO_FEW_COLORS
    return colored and console.encoding.startswith("utf")


@contextlib.contextmanager
def open_client(command: str, url: str, key: str | None, error_code: int | None = None) -> Iterator[Client]:
    """Open a client for a command. An error inside the block exits with one line on stderr and an exit code.

    error_code: the exit code for every error; None = `exit_code` of the error.
    """
    from denoised.client import Client, ServiceError

    try:
        with Client(url, key, retry_for=RETRY_SECONDS, on_wait=partial(_print_retry, command)) as client:
            yield client
    except ServiceError as error:
        exit_with_error(command, _with_key_hint(error), exit_code(error) if error_code is None else error_code)
    except BrokenPipeError:
        raise  # the reader of stdout has exited; typer exits quietly
    except OSError as error:
        exit_with_error(command, error, FAILED if error_code is None else error_code)
    except KeyboardInterrupt:
        exit_with_error(command, "interrupted", INTERRUPTED)


def _with_key_hint(error: ServiceError) -> str:
    """The error's message; for a missing or wrong API key, also how to pass one."""
    return f"{error} (--key KEY, or DENOISED_API_KEY)" if error.status == UNAUTHORIZED else str(error)


def exit_code(error: ServiceError) -> int:
    from denoised.client import ConnectionFailed, ServerBusy

    if isinstance(error, ConnectionFailed):
        return UNREACHABLE
    if isinstance(error, ServerBusy):
        return BUSY
    return USAGE if error.status == INVALID else FAILED


def print_line(text: str) -> None:
    """Print a line on stdout, without styles."""
    typer.echo(printable(text))


def truncate(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT - 1]}…"


def duration(seconds: float) -> str:
    """A duration for people: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min, 3 d."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    largest, next_largest = _units(seconds)
    return f"{largest} {next_largest}".rstrip()


def age(seconds: float) -> str:
    """A duration in its largest unit: 12 s, 3 min, 2 h, 3 d."""
    return _units(seconds)[0]


def _units(seconds: float) -> tuple[str, str]:
    """A duration in its largest unit, and the rest in the unit below, empty if there is none."""
    whole = round(seconds)
    for large, small in (("d", "h"), ("h", "min"), ("min", "s")):
        if whole >= UNITS[large]:
            rest = whole % UNITS[large] // UNITS[small]
            return f"{whole // UNITS[large]} {large}", f"{rest} {small}" if rest else ""
    return f"{whole} s", ""


def _print_retry(command: str, seconds: float, error: ServiceError) -> None:
    print_status(f"denoised {command}: {error}; trying again in {duration(seconds)}")
