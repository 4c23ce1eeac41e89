"""Clients that follow their jobs: each posts a job with a frame every step, reads its events, and gets the image.

Every other client listens over a WebSocket, the rest over SSE.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import httpx
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosedOK

from bench.errors import BenchError
from bench.load.closed_loop import IMAGE_TIMEOUT, CompletedRequest, Round, check_png, open_client, post, run_all
from bench.load.workloads import IMAGE_SIZE, ImageRequest

TYPE = re.compile(rb'"type": ?"(\w+)"')  # never matches inside an image: base64 has no quotes


async def listening_loop(
    url: str, clients: int, requests: Iterator[ImageRequest], *, warm_up: float, seconds: float
) -> tuple[Round, float]:
    """`closed_loop` with listening clients. Also returns the fraction of frames received; a slow reader misses some.

    Raises:
        BenchError: if a job does not succeed.
    """
    start = time.perf_counter() + warm_up
    result = Round(url, start, start + seconds, min_responses=clients)
    frames: Counter[str] = Counter()

    async def client(http: httpx.AsyncClient, over_socket: bool) -> None:
        while result.is_running():
            request = next(requests)
            began = time.perf_counter()
            job = (await post(http, request.body() | {"preview_every": 1}, accept="application/json")).json()
            events = await (_events_over_socket if over_socket else _events_over_sse)(http, job["id"])
            if events["succeeded"] != 1:
                raise BenchError(f"job {job['id']} did not succeed; its events: {dict(events)}")
            image = await http.get(f"/jobs/{job['id']}/images/0")
            check_png(image.content, IMAGE_SIZE)
            result.completed.append(CompletedRequest(request, began, time.perf_counter(), job["id"]))
            frames.update(received=events["frame"], expected=request.steps)

    async with open_client(url) as http:
        await run_all([client(http, k % 2 == 0) for k in range(clients)])
    return result, frames["received"] / frames["expected"]


async def _events_over_sse(http: httpx.AsyncClient, job: str) -> Counter[str]:
    """How many events of each type a job has."""
    async with http.stream("GET", f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as response:
        return count_types(b"".join([chunk async for chunk in response.aiter_raw()]))


async def _events_over_socket(http: httpx.AsyncClient, job: str) -> Counter[str]:
    url = f"ws://{http.base_url.netloc.decode()}/jobs/{job}/events"
    async with connect_socket(url, open_timeout=IMAGE_TIMEOUT, proxy=None, compression=None) as socket:
        received: list[bytes] = []
        with suppress(ConnectionClosedOK):
            while True:
                received.append(await socket.recv(decode=False))
        return count_types(b"".join(received))


def count_types(events: bytes) -> Counter[str]:
    """Count a job's events by type, once all of them have arrived.

    The clients share the server's cores: parsing each event as it comes would slow the server down.
    """
    return Counter(name.decode() for name in TYPE.findall(events))
