"""A `Puller` that reports to people: on a terminal, in pipes, and in a worker's log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console

from denoised.model.hub.byte_progress import Advance, line_progress, terminal_progress
from denoised.model.hub.pull import Puller
from denoised.model.hub.repository import Hub


def terminal_puller() -> Puller:
    """Reports on stderr: a bar on a terminal, lines elsewhere."""
    quiet_libraries()
    console = Console(stderr=True)
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    return Puller(Hub(), say, partial(terminal_progress, console))


def logging_puller(log: logging.Logger) -> Puller:
    """Reports in a log."""
    quiet_libraries()

    @contextmanager
    def show_progress(description: str, total: int) -> Iterator[Advance]:
        yield line_progress(log.info, description, total)

    return Puller(Hub(), log.info, show_progress)


def quiet_libraries() -> None:
    """Leave progress to us, and keep the libraries' own lines for what goes wrong."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
