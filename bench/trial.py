"""What the sections of a run on an accelerator share: the device, the time there is, and what to do when one fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from bench.figures import Samples
from bench.place import Place
from denoised.model.backends.numerics import Precision

T = TypeVar("T")


@dataclass
class Trial:
    """found: what a section finds; keep: writes it; compiled: whether the peers are measured compiled too; until: of
    time.monotonic(), when nothing more is begun.
    """

    place: Place
    found: Samples
    device: str
    precisions: tuple[Precision, ...]
    compiled: bool
    keep: Callable[[], None]
    until: float
    _closing: list[Callable[[], None]] = field(default_factory=list, init=False)

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.until

    def attempt(self, name: str, work: Callable[[], T]) -> T | None:
        """Do it; None when it fails, whatever it is: the others go on."""
        try:
            return work()
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            self.place.say(f"failed: {name}: {type(error).__name__}: {reason[:400]}")
            return None

    def start(self, starting: AbstractContextManager[T]) -> T:
        """Enter what starts a program; `stop_all` leaves it."""
        with ExitStack() as stack:
            started = stack.enter_context(starting)
            self._closing.append(stack.pop_all().close)
        return started

    def stop_all(self) -> None:
        """All that was started, side by side: each takes seconds."""
        if self._closing:
            with ThreadPoolExecutor(len(self._closing)) as pool:
                list(pool.map(lambda close: close(), self._closing))

    def wait(self) -> None:
        """Until a GPU has done what it was told."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
