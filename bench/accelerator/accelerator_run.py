"""What the sections of a run on an accelerator share: the device, the time limit, and how failures are handled."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from bench.benchmark_run import BenchmarkRun
from bench.results.samples import SampleRecorder
from denoised.model.backends.numerics import Precision

T = TypeVar("T")


@dataclass
class AcceleratorRun:
    """One section of a run on an accelerator.

    recorder: collects the samples of the section.
    compiled: whether the peers are also measured with a compiled network.
    save: writes what was recorded so far.
    deadline: by time.monotonic(); no measurement starts after it.
    """

    run: BenchmarkRun
    recorder: SampleRecorder
    device: str
    precisions: tuple[Precision, ...]
    compiled: bool
    save: Callable[[], None]
    deadline: float
    _closing: list[Callable[[], None]] = field(default_factory=list, init=False)

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.deadline

    def attempt(self, name: str, work: Callable[[], T]) -> T | None:
        """The result of `work`, or None if it fails: any error is logged, and the other subjects continue."""
        try:
            return work()
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            self.run.log(f"failed: {name}: {type(error).__name__}: {reason[:400]}")
            return None

    def start(self, program: AbstractContextManager[T]) -> T:
        """Enter a context that starts a program; `stop_all` exits it."""
        with ExitStack() as stack:
            started = stack.enter_context(program)
            self._closing.append(stack.pop_all().close)
        return started

    def stop_all(self) -> None:
        """Stop all programs concurrently, since each takes seconds to stop."""
        if self._closing:
            with ThreadPoolExecutor(len(self._closing)) as pool:
                list(pool.map(lambda close: close(), self._closing))

    def synchronize(self) -> None:
        """Wait until a GPU has finished its work."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
