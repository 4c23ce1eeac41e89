"""Closed-loop clients: each asks for a picture, waits for it, and asks for the next.

The same requests, in the same order, go to every server: the next one that any client sends is the next of one deck.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean, median
from typing import Any

import httpx

from bench.errors import BenchError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PATIENCE = 120.0  # seconds for one picture; only a hang reaches it
FEWEST_ANSWERS = 3  # in a round
EXTENSION = 1.0  # seconds by which one with fewer is longer, again and again
CLASSES = 10
GUIDANCE = 2.0
SIZE = (28, 28)  # of the bundled model's pictures


@dataclass(frozen=True)
class Ask:
    """One picture to ask for."""

    steps: int
    guided: bool
    label: int
    seed: int

    @property
    def evaluations(self) -> int:
        """Of the network, for one image each; guidance takes two."""
        return self.steps * (2 if self.guided else 1)

    def body(self) -> dict[str, Any]:
        """Of the request; every server here understands it."""
        scale = GUIDANCE if self.guided else 1.0
        return {
            "label": self.label,
            "seed": self.seed,
            "steps": self.steps,
            "guidance_scale": scale,
            "sampler": "ddim",
        }


@dataclass(frozen=True)
class Load:
    """What is asked for: each hand of the deck holds `hand` once, in another order, and a quarter of it guided or not.

    guided: every how many-th request of a hand is guided; 0: none.
    """

    name: str
    hand: tuple[int, ...]
    guided: int = 0

    def asks(self, seed: int) -> Iterator[Ask]:
        """Without end; the same for the same seed."""
        chance = random.Random(seed)
        while True:
            hand = list(self.hand)
            chance.shuffle(hand)
            for k, steps in enumerate(hand):
                guided = bool(self.guided) and k % self.guided == 0
                yield Ask(steps, guided, chance.randrange(CLASSES), chance.randrange(2**31))

    @property
    def evaluations_a_step(self) -> float:
        """Rows of the network that a request has in a turn, on average over a long time."""
        asks = list(islice(self.asks(0), 20 * len(self.hand)))
        return sum(ask.evaluations for ask in asks) / sum(ask.steps for ask in asks)


THREE_STEP_COUNTS = Load("three step counts", (10, 20, 50))
REAL_TRAFFIC = Load("real traffic", tuple(range(5, 61)), guided=4)
TWENTY_STEPS = Load("20 steps", (20,))
SHORT_JOBS = Load("one or two steps", (1, 2))


@dataclass(frozen=True)
class Answered:
    """A request and when it began and ended (seconds); job: its id, where the server names one."""

    ask: Ask
    began: float
    ended: float
    job: str | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass
class Round:
    """What closed-loop clients saw; only what ended between `start` and `end` counts.

    least: answers without which a round is not over; where a machine is so slow, `end` is put off.
    """

    url: str
    start: float
    end: float
    answered: list[Answered] = field(default_factory=list)
    least: int = 1

    def goes_on(self) -> bool:
        """Whether a client is to ask once more."""
        now = time.perf_counter()
        if now < self.end:
            return True
        if len(self.counted) >= self.least:
            return False
        self.end = now + EXTENSION
        return True

    @property
    def counted(self) -> list[Answered]:
        """Those that ended in time, in the order of their ends."""
        return sorted((a for a in self.answered if self.start < a.ended <= self.end), key=lambda a: a.ended)

    @property
    def evaluations_per_second(self) -> float:
        """Evaluations of what ended, over the time from the last end before the round to the last end in it.

        So a server that answers many at once is not judged by where between two of its batches a round begins. Where
        none ended before, what ended in the round was worked on since the first was asked for.

        Raises:
            BenchError: when nothing ended in the round.
        """
        counted = self.counted
        if not counted:
            raise BenchError(
                f"{self.url}: no request ended within {self.end - self.start:g} s: the rounds are too short"
            )
        asked = min(a.began for a in self.answered)
        before = max((a.ended for a in self.answered if a.ended <= self.start), default=asked)
        return sum(a.ask.evaluations for a in counted) / (counted[-1].ended - before)

    def latency(self, steps: int | None = None) -> float:
        """Median seconds of the requests with so many steps; of all for None.

        Raises:
            BenchError: when none of them ended in the round.
        """
        seconds = [a.seconds for a in self.counted if steps is None or a.ask.steps == steps]
        if not seconds:
            raise BenchError(f"{self.url}: no request of {steps} steps ended in the round: it is too short")
        return median(seconds)


async def closed_loop(
    url: str,
    clients: int,
    asks: Iterator[Ask],
    *,
    warm_up: float,
    seconds: float,
    size: tuple[int, int] = SIZE,
    patience: float = PATIENCE,
) -> Round:
    """So many clients for so long; returns when all are answered, each of them once at least on average.

    Raises:
        BenchError: when any request was not answered with a PNG of `size` (width, height).
    """
    start = time.perf_counter() + warm_up
    result = Round(url, start, start + seconds, least=max(FEWEST_ANSWERS, clients))

    async def client(http: httpx.AsyncClient) -> None:
        while result.goes_on():
            result.answered.append(await ask_once(http, next(asks), size))

    async with connection(url, patience) as http:
        await together([client(http) for _ in range(clients)])
    return result


async def counted_loop(url: str, clients: int, asks: Sequence[Ask], size: tuple[int, int] = SIZE) -> list[Answered]:
    """The same, for a number of requests.

    Raises:
        BenchError: as `closed_loop`.
    """
    ahead, answered = iter(asks), []

    async def client(http: httpx.AsyncClient) -> None:
        answered.extend([await ask_once(http, ask, size) for ask in ahead])

    async with connection(url) as http:
        await together([client(http) for _ in range(clients)])
    return answered


async def together(work: Sequence[Any]) -> None:
    """Coroutines side by side; the first error of one ends them all and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except* BenchError as errors:
        raise errors.exceptions[0] from None


def connection(url: str, patience: float = PATIENCE) -> httpx.AsyncClient:
    """A client that keeps as many connections as it is used for at a time, and waits so long for an answer."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=patience, limits=limits, trust_env=False)


async def ask_once(http: httpx.AsyncClient, ask: Ask, size: tuple[int, int] = SIZE) -> Answered:
    """One picture.

    Raises:
        BenchError: when that is not what came.
    """
    began = time.perf_counter()
    response = await post(http, ask.body(), accept="image/png")
    answered = Answered(ask, began, time.perf_counter(), response.headers.get("X-Job-Id"))
    check_png(response.content, size)
    return answered


async def post(http: httpx.AsyncClient, body: dict[str, Any], accept: str) -> httpx.Response:
    """The answer to a request for pictures, which is a success.

    Raises:
        BenchError: when it is none.
    """
    try:
        response = await http.post("/generate", json=body, headers={"Accept": accept})
    except httpx.TimeoutException as error:
        raise BenchError(
            f"{http.base_url} gave no picture within {http.timeout.read:g} s: is the machine busy?"
        ) from error
    except httpx.HTTPError as error:
        raise BenchError(f"{http.base_url}: {type(error).__name__}: {error}") from error
    if response.status_code not in (200, 202):
        raise BenchError(f"{http.base_url} answered {response.status_code} to {body}: {response.text[:300]}")
    return response


def check_png(content: bytes, size: tuple[int, int]) -> None:
    """Raise a BenchError unless `content` is a whole PNG of that width and height."""
    whole = content.startswith(PNG_SIGNATURE) and content[12:16] == b"IHDR" and content[-8:-4] == b"IEND"
    if not whole:
        raise BenchError(f"an answer is no PNG: {content[:40]!r}")
    found = struct.unpack(">II", content[16:24])
    if found != size:
        raise BenchError(f"a picture has {found[0]}×{found[1]} pixels, not {size[0]}×{size[1]}")


async def mean_batch(url: str, answered: Sequence[Answered], looked_at: int = 40) -> float:
    """Rows of the evaluations that jobs took part in, as their server says; of some of them, by their evaluations."""
    ids = [a.job for a in answered if a.job is not None][-looked_at:]
    async with connection(url) as http:
        timings = [(await http.get(f"/jobs/{job}")).raise_for_status().json()["timing"] for job in ids]
    if not timings:
        raise BenchError(f"{url} named no jobs")
    return fmean([t["mean_batch"] for t in timings], weights=[t["evaluations"] for t in timings])
