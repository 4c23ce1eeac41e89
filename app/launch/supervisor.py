"""`Supervisor`: starts child processes in order, restarts them when they exit, and stops them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from denoised.app.launch.child import Child
from denoised.app.launch.errors import ChildStartError, LaunchError

log = logging.getLogger("denoised.serve")

STOP_SECONDS = 12.0  # time for a child to stop after SIGTERM


class Supervisor:
    """Keeps child processes running until `request_stop`.

    stopping: whether a stop was requested.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._children: list[Child] = []

    def start(self, child: Child) -> None:
        """Start a child, from now on supervised."""
        self._children.append(child)
        child.start()

    def request_stop(self) -> None:
        """Make `watch` and `wait_until` return; safe in a signal handler."""
        self.stopping = True

    def watch(self) -> None:
        """Restart exited children until a stop is requested."""
        while not self.stopping:
            for child in self._children:
                reason = child.restart_if_exited()
                if reason is not None:
                    log.warning("child exited; restarting it", extra={"child": child.name, "reason": reason})
            time.sleep(0.1)

    def wait_until(self, ready: Callable[[], bool], what: str, timeout: float) -> None:
        """Wait for a condition, or for a stop request.

        what: the condition in words, for messages.
        timeout: seconds.

        Raises:
            ChildStartError: if a child exits with code 1, which means that it has printed the reason.
            LaunchError: if a child exits with another code, or after the timeout.
        """
        end = time.monotonic() + timeout
        while not ready():
            if self.stopping:
                return
            self._check_children(what)
            if time.monotonic() > end:
                raise LaunchError(f"{what} took longer than {timeout:g} s")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop all children, those with `stops_last` after the others have exited."""
        last = [child for child in self._children if child.stops_last]
        others = [child for child in self._children if not child.stops_last]
        for child in others:
            child.terminate()
        for child in (*others, *last):
            child.stop(STOP_SECONDS)

    def _check_children(self, what: str) -> None:
        for child in self._children:
            if child.exit_code == 1:
                raise ChildStartError(f"the {child.name} does not start")
            if child.exit_code is not None:
                raise LaunchError(f"the {child.name} exited with code {child.exit_code} before {what}")
