"""Clients that wait for the end of a job. Used in the event loop only."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain

MAX_REMEMBERED = 1000  # recent ends, kept for clients that begin to wait just after one


class EndWaiter:
    """A client that waits.

    Attributes:
        key: The hash of the API key of its request.
        woken: Set when the job may have ended, or the key was revoked.
        is_revoked: Whether the key was revoked.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.woken = asyncio.Event()
        self.is_revoked = False


class EndNotifications:
    """Wakes clients when jobs end."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[EndWaiter]] = {}
        self._ended: deque[str] = deque(maxlen=MAX_REMEMBERED)

    @contextlib.contextmanager
    def subscribe(self, job_id: str, key: str) -> Iterator[EndWaiter]:
        """A waiter that is woken when the job may have ended. key: see `EndWaiter`."""
        waiter = EndWaiter(key)
        if job_id in self._ended:
            waiter.woken.set()
        self._waiting.setdefault(job_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            self._waiting[job_id].discard(waiter)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def notify(self, job_ids: Sequence[str]) -> None:
        """Wake those that wait for jobs that have ended."""
        self._ended.extend(job_ids)
        for job_id in job_ids:
            for waiter in self._waiting.get(job_id, ()):
                waiter.woken.set()

    def notify_all(self) -> None:
        """Wake all, on shutdown."""
        for waiter in chain(*self._waiting.values()):
            waiter.woken.set()

    def revoke(self, keys: frozenset[str]) -> None:
        """Wake those whose key, given by its hash, is no longer accepted."""
        for waiter in chain(*self._waiting.values()):
            if waiter.key in keys:
                waiter.is_revoked = True
                waiter.woken.set()
