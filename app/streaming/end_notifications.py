"""Clients that wait for the end of a job. Used in the event loop only."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator, Sequence

MAX_REMEMBERED = 1000  # recent ends, kept for clients that begin to wait just after one


class EndNotifications:
    """Events that are set when jobs end."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._ended: deque[str] = deque(maxlen=MAX_REMEMBERED)

    @contextlib.contextmanager
    def subscribe(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the job may have ended."""
        ended = asyncio.Event()
        if job_id in self._ended:
            ended.set()
        self._waiting.setdefault(job_id, set()).add(ended)
        try:
            yield ended
        finally:
            self._waiting[job_id].discard(ended)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def notify(self, job_ids: Sequence[str]) -> None:
        """Set the events of jobs that have ended."""
        self._ended.extend(job_ids)
        for job_id in job_ids:
            for ended in self._waiting.get(job_id, ()):
                ended.set()

    def notify_all(self) -> None:
        """Set every event, on shutdown."""
        for events in self._waiting.values():
            for ended in events:
                ended.set()
