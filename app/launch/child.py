"""`Child`: a program that the supervisor keeps running."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from denoised.app.launch.cores import pin

FIRST_BACKOFF, LONGEST_BACKOFF = 0.2, 5.0  # seconds before a restart; doubles with each
HEALTHY_SECONDS = 10.0  # a child that runs longer than this starts over with FIRST_BACKOFF
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass
class Child:
    """A child process and its restarts.

    module: run as `python -P -m module`, so that no file in the working directory replaces one of ours.
    environment: added to this process's environment.
    stops_last: stopped after all other children.
    cores: that it may run on, where the platform can pin a process; None = all.
    """

    name: str
    module: str
    arguments: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stops_last: bool = False
    cores: frozenset[int] | None = None
    _process: subprocess.Popen[bytes] | None = None
    _started_at: float = 0.0
    _restart_at: float = 0.0
    _backoff: float = FIRST_BACKOFF

    def start(self) -> None:
        """Start the program."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self.module, *self.arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=self._prepare,
        )
        self._started_at = time.monotonic()

    def _prepare(self) -> None:
        """In the child process, before its program."""
        die_with_parent()
        pin(self.cores)

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while the program runs."""
        return self._process.poll() if self._process is not None else None

    def terminate(self) -> None:
        """Send SIGTERM if the program runs."""
        if self._process is not None and self.exit_code is None:
            self._process.terminate()

    def stop(self, timeout: float) -> None:
        """Send SIGTERM, then SIGKILL after `timeout` seconds."""
        if self._process is None or self.exit_code is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def restart_if_exited(self) -> str | None:
        """Restart an exited program after its backoff. Returns the reason when it first finds the program exited."""
        code, now = self.exit_code, time.monotonic()
        if code is None:
            if now - self._started_at > HEALTHY_SECONDS:
                self._backoff = FIRST_BACKOFF
            return None
        if self._restart_at < self._started_at:
            self._restart_at = now + self._backoff
            self._backoff = min(self._backoff * 2, LONGEST_BACKOFF)
            return _reason(code)
        if now >= self._restart_at:
            self.start()
        return None


def die_with_parent() -> None:
    """In a child process on Linux: ask the kernel for SIGTERM when the parent dies, even by SIGKILL."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
