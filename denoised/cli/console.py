"""How the commands speak: results on stdout, all else on stderr, an error in one line, an exit code for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from denoised.client import Client, ServiceError

OK = 0
REFUSED = 1  # the service said no, the job failed or was canceled, a file cannot be written
USAGE = 2  # Click's own
UNREACHABLE = 3
BUSY = 4
INTERRUPTED = 130  # 128 + SIGINT, as shells say it

EXIT_CODES = (
    "Exit codes: 0 done · 1 refused, failed or canceled · 2 wrong usage · 3 no server answers · 4 the server is busy, "
    "try again later · 130 interrupted. (verify: 0 equal, 1 not, 2 trouble, as cmp.)"
)
UNAUTHORIZED = 401  # HTTP's
PATIENCE = 60.0  # seconds that a busy server is waited for
PALE = ("standard", None)  # too few colours for a picture


def stdout() -> Console:
    """For results. Rich heeds NO_COLOR, TERM=dumb, COLUMNS, and whether it is a terminal."""
    from rich.console import Console

    return Console(highlight=False)


def stderr() -> Console:
    """For everything else."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def lively(console: Console) -> bool:
    """Whether lines on it can be drawn anew."""
    return console.is_terminal and not console.is_dumb_terminal


def shows_pictures(console: Console) -> bool:
    """Whether it has colours enough for a picture, and half-blocks."""
    colours = lively(console) and not console.no_color and console.color_system not in PALE
    return colours and console.encoding.startswith("utf")


@contextlib.contextmanager
def service(command: str, url: str, key: str | None, trouble: int | None = None) -> Iterator[Client]:
    """A client for a command; what goes wrong with it ends the command in one line, with its exit code, or with that
    which the command has for all trouble."""
    from denoised.client import Client, ServiceError

    try:
        with Client(url, key, retry_for=PATIENCE, on_wait=partial(_wait, command)) as client:
            yield client
    except ServiceError as error:
        refuse(command, _advised(error), exit_code(error) if trouble is None else trouble)
    except BrokenPipeError:
        raise  # whoever read the results has gone; Click ends quietly
    except OSError as error:
        refuse(command, error, REFUSED if trouble is None else trouble)
    except KeyboardInterrupt:
        refuse(command, "interrupted", INTERRUPTED)


def _advised(error: ServiceError) -> str:
    """An error's words, and how a command is given a key where one is missing or wrong."""
    return f"{error} (--key KEY, or DENOISED_API_KEY)" if error.status == UNAUTHORIZED else str(error)


def exit_code(error: ServiceError) -> int:
    from denoised.client import Busy, Unreachable

    return UNREACHABLE if isinstance(error, Unreachable) else BUSY if isinstance(error, Busy) else REFUSED


def refuse(command: str, error: object, code: int = REFUSED) -> NoReturn:
    """One line on stderr, and the end."""
    complain(command, error)
    raise typer.Exit(code)


def complain(command: str, error: object) -> None:
    """One line on stderr."""
    text = printable(f"denoised {command}: {error}")
    stderr().print(text, style="red", markup=False, soft_wrap=True)


def remark(text: str) -> None:
    """One line on stderr that is no error."""
    stderr().print(printable(text), markup=False, soft_wrap=True)


def say(text: str) -> None:
    """One line on stdout, as plain as it is given."""
    typer.echo(printable(text))


def say_json(value: Any) -> None:
    """One line of JSON on stdout."""
    typer.echo(json.dumps(value))
    sys.stdout.flush()


def printable(text: str) -> str:
    """Without what steers a terminal: files and servers may have been written by anybody."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def duration(seconds: float) -> str:
    """Seconds for people: 0.4 s, 12 s, 3:05 min, 2:10 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _wait(command: str, seconds: float, why: ServiceError) -> None:
    remark(f"denoised {command}: {why}; trying again in {duration(seconds)}")
