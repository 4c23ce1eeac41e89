"""Clients who watch: each posts a job with a frame at every step, follows its events to the end, and takes the picture.

Every other one listens over a WebSocket, the others over SSE.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator

import httpx
from websockets.asyncio.client import connect

from bench.errors import BenchError
from bench.load import PATIENCE, SIZE, Answered, Ask, Round, check_png, connection, post, together

ENDS = ("succeeded", "failed", "canceled")


async def follow_loop(
    url: str, clients: int, asks: Iterator[Ask], *, warm_up: float, seconds: float
) -> tuple[Round, float]:
    """`load.closed_loop` with listeners; and which share of the frames came: old ones may be left out for the slow.

    Raises:
        BenchError: when a job does not end in its picture.
    """
    start = time.perf_counter() + warm_up
    result = Round(url, start, start + seconds)
    frames: Counter[str] = Counter()

    async def client(http: httpx.AsyncClient, over_socket: bool) -> None:
        while time.perf_counter() < result.end:
            ask = next(asks)
            began = time.perf_counter()
            job = (await post(http, ask.body() | {"preview_every": 1}, accept="application/json")).json()
            seen = await (_over_socket if over_socket else _over_sse)(http, job["id"])
            if not seen["succeeded"]:
                raise BenchError(f"job {job['id']} did not succeed: {dict(seen)}")
            picture = await http.get(f"/jobs/{job['id']}/images/0")
            check_png(picture.content, SIZE)
            result.answered.append(Answered(ask, began, time.perf_counter(), job["id"]))
            frames.update(seen=seen["frame"], due=ask.steps)

    async with connection(url) as http:
        await together([client(http, k % 2 == 0) for k in range(clients)])
    return result, frames["seen"] / frames["due"]


async def _over_sse(http: httpx.AsyncClient, job: str) -> Counter[str]:
    """How many events of each type a job had."""
    seen: Counter[str] = Counter()
    async with http.stream("GET", f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                seen[json.loads(line.removeprefix("data: "))["type"]] += 1
    return _ended(seen, job)


async def _over_socket(http: httpx.AsyncClient, job: str) -> Counter[str]:
    seen: Counter[str] = Counter()
    url = f"ws://{http.base_url.netloc.decode()}/jobs/{job}/events"
    async with connect(url, open_timeout=PATIENCE, proxy=None) as socket:
        async for message in socket:
            seen[json.loads(message)["type"]] += 1
    return _ended(seen, job)


def _ended(seen: Counter[str], job: str) -> Counter[str]:
    if sum(seen[end] for end in ENDS) != 1:
        raise BenchError(f"the events of job {job} have no end: {dict(seen)}")
    return seen
