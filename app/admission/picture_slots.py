"""How many pictures are decoded at a time: a large one takes 130 MB and a core for a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from denoised.app.http.errors import Unavailable

SLOTS = 4
WAIT_SECONDS = 10.0
RETRY_AFTER = 2  # seconds


class PictureSlots:
    """Used in the threads of routes."""

    def __init__(self, slots: int = SLOTS, wait_seconds: float = WAIT_SECONDS) -> None:
        self._slots = threading.BoundedSemaphore(slots)
        self._wait_seconds = wait_seconds

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold a slot.

        Raises:
            Unavailable: when none is free in time.
        """
        if not self._slots.acquire(timeout=self._wait_seconds):
            detail = "too many pictures are being read; nothing was accepted, try again"
            raise Unavailable(detail, headers={"Retry-After": str(RETRY_AFTER)})
        try:
            yield
        finally:
            self._slots.release()
