"""Clients who watch: each posts a job with a frame at every step, follows its events to the end, and takes the picture.

Every other one listens over a WebSocket, the others over SSE.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from bench.errors import BenchError
from bench.load import PATIENCE, SIZE, Answered, Ask, Round, check_png, connection, post, together

TYPE = re.compile(rb'"type": ?"(\w+)"')  # in no picture: base64 has no quotes


async def follow_loop(
    url: str, clients: int, asks: Iterator[Ask], *, warm_up: float, seconds: float
) -> tuple[Round, float]:
    """`load.closed_loop` with listeners; and which share of the frames came: old ones may be left out for the slow.

    Raises:
        BenchError: when a job does not end in its picture.
    """
    start = time.perf_counter() + warm_up
    result = Round(url, start, start + seconds, least=clients)
    frames: Counter[str] = Counter()

    async def client(http: httpx.AsyncClient, over_socket: bool) -> None:
        while result.goes_on():
            ask = next(asks)
            began = time.perf_counter()
            job = (await post(http, ask.body() | {"preview_every": 1}, accept="application/json")).json()
            seen = await (_over_socket if over_socket else _over_sse)(http, job["id"])
            if seen["succeeded"] != 1:
                raise BenchError(f"the events of job {job['id']} do not end in its success: {dict(seen)}")
            picture = await http.get(f"/jobs/{job['id']}/images/0")
            check_png(picture.content, SIZE)
            result.answered.append(Answered(ask, began, time.perf_counter(), job["id"]))
            frames.update(seen=seen["frame"], due=ask.steps)

    async with connection(url) as http:
        await together([client(http, k % 2 == 0) for k in range(clients)])
    return result, frames["seen"] / frames["due"]


async def _over_sse(http: httpx.AsyncClient, job: str) -> Counter[str]:
    """How many events of each type a job had."""
    async with http.stream("GET", f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as response:
        return types(b"".join([chunk async for chunk in response.aiter_raw()]))


async def _over_socket(http: httpx.AsyncClient, job: str) -> Counter[str]:
    url = f"ws://{http.base_url.netloc.decode()}/jobs/{job}/events"
    async with connect(url, open_timeout=PATIENCE, proxy=None, compression=None) as socket:
        received: list[bytes] = []
        with suppress(ConnectionClosedOK):
            while True:
                received.append(await socket.recv(decode=False))
        return types(b"".join(received))


def types(events: bytes) -> Counter[str]:
    """Of all events of a job, how many there are of each type; looked for only when all have come.

    The listeners share the cores with the server: what they do for each event would count against it.
    """
    return Counter(found.decode() for found in TYPE.findall(events))
