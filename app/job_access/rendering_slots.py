"""How many animations are made at a time: each keeps a core busy for seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from denoised.app.http.errors import Unavailable
from denoised.jobs.redis.deadline import REDIS_DEADLINE

T = TypeVar("T")

SLOTS = 2
WAIT_SECONDS = 20.0
RETRY_AFTER = 5  # seconds


class RenderingSlots:
    """Used in the event loop only."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(SLOTS)

    async def run(self, render: Callable[[], T]) -> T:
        """Call a blocking function in a thread as soon as a slot is free.

        Raises:
            Unavailable: when none is free in time.
        """
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._slots.acquire()
        except TimeoutError as error:
            detail = f"{SLOTS} animations are being made, and none was ready after {WAIT_SECONDS:g} s; try again"
            raise Unavailable(detail, headers={"Retry-After": str(RETRY_AFTER)}) from error
        REDIS_DEADLINE.set(None)  # reading all frames takes more than one request may spend on Redis
        try:
            return await run_in_threadpool(render)
        finally:
            self._slots.release()
