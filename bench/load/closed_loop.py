"""Closed-loop clients: each requests an image, waits for it, and requests the next.

All servers get the same requests in the same order: the clients take them from one sequence.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import httpx

from bench.errors import BenchError
from bench.load.workloads import IMAGE_SIZE, ImageRequest

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
IMAGE_TIMEOUT = 120.0  # seconds for one image; only a hang takes that long
MIN_RESPONSES = 3  # per round
EXTENSION = 1.0  # seconds by which a round with fewer responses is extended, repeatedly


@dataclass(frozen=True)
class CompletedRequest:
    """A request and when it began and ended, in seconds. job: the id of its job, if the server names one."""

    request: ImageRequest
    began: float
    ended: float
    job: str | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass
class Round:
    """The responses to closed-loop clients; only those between `start` and `end` count.

    min_responses: on a slow machine, the end is postponed until this many have arrived.
    unanswered: clients that have had no response yet. The start, and the end with it, is postponed until all have had
        one: before that, a server that runs all requests at once has done work that no response shows.
    """

    url: str
    start: float
    end: float
    completed: list[CompletedRequest] = field(default_factory=list)
    min_responses: int = 1
    unanswered: int = 0

    def note_first_response(self) -> None:
        """A client has had its first response."""
        self.unanswered -= 1
        late = time.perf_counter() - self.start
        if self.unanswered == 0 and late > 0:
            self.start, self.end = self.start + late, self.end + late

    def is_running(self) -> bool:
        """Whether a client should send another request."""
        now = time.perf_counter()
        if now < self.end or self.unanswered > 0:
            return True
        if len(self.counted) >= self.min_responses:
            return False
        self.end = now + EXTENSION
        return True

    @property
    def counted(self) -> list[CompletedRequest]:
        """The requests that ended within the round, in the order of their ends."""
        return sorted((c for c in self.completed if self.start < c.ended <= self.end), key=lambda c: c.ended)

    @property
    def evaluations_per_second(self) -> float:
        """Evaluations of the counted requests, over the time from the last end before the round to the last in it.

        This way the result for a server that completes whole batches does not depend on where between two batches the
        round begins. If nothing ended before the round, the time starts with the first request.

        Raises:
            BenchError: if no request ended in the round.
        """
        counted = self.counted
        if not counted:
            raise BenchError(
                f"{self.url}: no request ended within {self.end - self.start:g} s: the rounds are too short"
            )
        first_request = min(c.began for c in self.completed)
        before = max((c.ended for c in self.completed if c.ended <= self.start), default=first_request)
        return sum(c.request.evaluations for c in counted) / (counted[-1].ended - before)

    def latency(self, steps: int | None = None) -> float:
        """Median seconds of the requests with this many steps, or of all.

        Raises:
            BenchError: if no such request ended in the round.
        """
        seconds = [c.seconds for c in self.counted if steps is None or c.request.steps == steps]
        if not seconds:
            raise BenchError(f"{self.url}: no request of {steps} steps ended in the round: it is too short")
        return median(seconds)


async def closed_loop(
    url: str,
    clients: int,
    requests: Iterator[ImageRequest],
    *,
    warm_up: float,
    seconds: float,
    size: tuple[int, int] = IMAGE_SIZE,
    timeout: float = IMAGE_TIMEOUT,
) -> Round:
    """Run so many clients for so long; returns when all their requests are answered.

    warm_up: the round starts so many seconds later, and not before each client has had a response. It is extended until
        each has had another one on average.

    Raises:
        BenchError: if a request is not answered with a PNG of `size` (width, height).
    """
    start = time.perf_counter() + warm_up
    result = Round(url, start, start + seconds, min_responses=max(MIN_RESPONSES, clients), unanswered=clients)

    async def client(http: httpx.AsyncClient) -> None:
        result.completed.append(await request_image(http, next(requests), size))
        result.note_first_response()
        while result.is_running():
            result.completed.append(await request_image(http, next(requests), size))

    async with open_client(url, timeout) as http:
        await run_all([client(http) for _ in range(clients)])
    return result


async def counted_loop(
    url: str, clients: int, requests: Sequence[ImageRequest], size: tuple[int, int] = IMAGE_SIZE
) -> list[CompletedRequest]:
    """Send each of the requests once, from so many clients.

    Raises:
        BenchError: as `closed_loop`.
    """
    remaining, completed = iter(requests), []

    async def client(http: httpx.AsyncClient) -> None:
        completed.extend([await request_image(http, request, size) for request in remaining])

    async with open_client(url) as http:
        await run_all([client(http) for _ in range(clients)])
    return completed


async def run_all(coroutines: Sequence[Any]) -> None:
    """Run coroutines concurrently; the first error cancels them all and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except* BenchError as errors:
        raise errors.exceptions[0] from None


def open_client(url: str, timeout: float = IMAGE_TIMEOUT) -> httpx.AsyncClient:
    """An HTTP client without a limit on connections; `timeout` is how long it waits for a response."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False)


async def request_image(
    http: httpx.AsyncClient, request: ImageRequest, size: tuple[int, int] = IMAGE_SIZE
) -> CompletedRequest:
    """Request one image.

    Raises:
        BenchError: if the response is not a PNG of that size.
    """
    began = time.perf_counter()
    response = await post(http, request.body(), accept="image/png")
    completed = CompletedRequest(request, began, time.perf_counter(), response.headers.get("X-Job-Id"))
    check_png(response.content, size)
    return completed


async def post(http: httpx.AsyncClient, body: dict[str, Any], accept: str) -> httpx.Response:
    """The successful response to a request for images.

    Raises:
        BenchError: if the request fails.
    """
    try:
        response = await http.post("/generate", json=body, headers={"Accept": accept})
    except httpx.TimeoutException as error:
        raise BenchError(
            f"{http.base_url} returned no image within {http.timeout.read:g} s: is the machine busy?"
        ) from error
    except httpx.HTTPError as error:
        raise BenchError(f"{http.base_url}: {type(error).__name__}: {error}") from error
    if response.status_code not in (200, 202):
        raise BenchError(f"{http.base_url} answered {response.status_code} to {body}: {response.text[:300]}")
    return response


def check_png(content: bytes, size: tuple[int, int]) -> None:
    """Raise a BenchError unless `content` is a complete PNG of that width and height."""
    is_complete = content.startswith(PNG_SIGNATURE) and content[12:16] == b"IHDR" and content[-8:-4] == b"IEND"
    if not is_complete:
        raise BenchError(f"a response is not a PNG: {content[:40]!r}")
    width, height = struct.unpack(">II", content[16:24])
    if (width, height) != size:
        raise BenchError(f"an image has {width}×{height} pixels, not {size[0]}×{size[1]}")


async def mean_batch(url: str, completed: Sequence[CompletedRequest], jobs: int = 40) -> float:
    """The mean batch of the last `jobs` jobs as the server reports it, weighted by their evaluations."""
    ids = [c.job for c in completed if c.job is not None][-jobs:]
    async with open_client(url) as http:
        timings = [(await http.get(f"/jobs/{job}")).raise_for_status().json()["timing"] for job in ids]
    if not timings:
        raise BenchError(f"{url} named no jobs")
    return fmean([t["mean_batch"] for t in timings], weights=[t["evaluations"] for t in timings])
