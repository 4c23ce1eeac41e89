"""Sections that load the servers: side by side, against the number of clients, and with listeners."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import engine_loop
from bench.effort import Effort
from bench.errors import BenchError
from bench.figures import Samples
from bench.following import follow_loop
from bench.load import (
    REAL_TRAFFIC,
    SIZE,
    THREE_STEP_COUNTS,
    TWENTY_STEPS,
    Ask,
    Load,
    Round,
    check_png,
    closed_loop,
    mean_batch,
)
from bench.names import (
    BARE,
    CHOSEN_BATCH,
    ENGINE,
    EVALUATIONS,
    FRAMES,
    LATENCY,
    MEAN_BATCH,
    NO_LISTENERS,
    ONE_CLIENT,
    OURS,
    SHORT_LATENCY,
    SIXTEEN_LISTENERS,
)
from bench.place import Place
from bench.servers import Server
from denoised.model.serving.protocol import ServedModel
from denoised.worker.model_loading import DEFAULT, load_models

CLIENTS = 16
PROBE = Ask(steps=10, guided=False, label=7, seed=7)  # what all are asked for before they are loaded
NEAR = 2  # grey levels: how far the same picture from two servers may be apart, by rounding


def measure_loads(place: Place, found: Samples) -> None:
    """Everybody under both loads with 16 clients, and our engine alone; one client with (b) and ours."""
    servers, effort = place.servers, place.effort
    check_same_pictures([servers.locked, servers.batching, servers.ours])
    models = load_models([], device="cpu", max_images=1)
    for server in (servers.locked, servers.batching, servers.ours):
        place.say(f"{server.name}: {server.url}")
    place.say(f"{BARE}: {servers.bare.images} images, {servers.bare.layout}")
    for number in range(effort.rounds):
        for load in (THREE_STEP_COUNTS, REAL_TRAFFIC):
            for server in (servers.locked, servers.batching):
                note(found, load.name, server.name, loaded(place, server, load, CLIENTS, number, effort.seconds))
            rows = load_ours(place, servers.ours, found, load, number)
            found.add(load.name, BARE, EVALUATIONS, servers.bare.evaluations_per_second(effort.seconds / 2))
            found.add(load.name, BARE, CHOSEN_BATCH, servers.bare.images)
            found.add(load.name, ENGINE, EVALUATIONS, engine_rate(models[DEFAULT], load, number, rows, effort))
            place.say(f"round {number + 1}, {load.name}: {_summary(found, load.name)}")
        for server in (servers.batching, servers.ours):
            result = loaded(place, server, TWENTY_STEPS, 1, number, effort.sweep_seconds)
            found.add(ONE_CLIENT, server.name, LATENCY, result.latency())


def measure_clients(place: Place, found: Samples) -> None:
    """(b) and ours under the first load, with more and more clients."""
    effort = place.effort
    for number in range(effort.rounds):
        for server in (place.servers.batching, place.servers.ours):
            with server.awake():
                for clients in effort.clients:
                    asks = THREE_STEP_COUNTS.asks(number)
                    result = _run(place, server, asks, clients, effort.sweep_seconds)
                    found.add(clients, server.name, EVALUATIONS, result.evaluations_per_second)
                    found.add(clients, server.name, LATENCY, result.latency())
        place.say(f"round {number + 1} of 1 … {max(effort.clients)} clients")


def measure_listeners(place: Place, found: Samples) -> None:
    """The first load on ours, with a frame every step and somebody who follows each job, and without."""
    effort, ours = place.effort, place.servers.ours
    for number in range(effort.rounds):
        with ours.awake():
            quiet = _run(place, ours, THREE_STEP_COUNTS.asks(number), CLIENTS, effort.seconds)
            followed, share = asyncio.run(
                follow_loop(
                    ours.url,
                    CLIENTS,
                    THREE_STEP_COUNTS.asks(number),
                    warm_up=effort.warm_up,
                    seconds=effort.seconds,
                )
            )
        found.add(NO_LISTENERS, OURS, EVALUATIONS, quiet.evaluations_per_second)
        found.add(SIXTEEN_LISTENERS, OURS, EVALUATIONS, followed.evaluations_per_second)
        found.add(SIXTEEN_LISTENERS, OURS, FRAMES, share)
        place.say(
            f"round {number + 1}: {quiet.evaluations_per_second:.0f} evaluations/s without listeners, "
            f"{followed.evaluations_per_second:.0f} with ({share:.0%} of the frames came)"
        )


def check_same_pictures(servers: list[Server]) -> None:
    """Raise a BenchError unless all of them make the same picture of the same request: then they do the same work."""
    seen = {server.name: picture_of(server) for server in servers}
    first, *others = seen
    for name in others:
        apart = int(np.abs(seen[name] - seen[first]).max())
        if apart > NEAR:
            raise BenchError(f"{name} and {first} make different pictures of {PROBE}: {apart} grey levels apart")


def picture_of(server: Server) -> NDArray[np.int64]:
    """What it makes of one request: grey levels, (H, W).

    Raises:
        BenchError: when that is no picture.
    """
    with server.awake():
        response = httpx.post(
            f"{server.url}/generate", json=PROBE.body(), headers={"Accept": "image/png"}, timeout=60, trust_env=False
        )
    if response.status_code != 200:
        raise BenchError(f"{server.name} answered {response.status_code}: {response.text[:300]}")
    check_png(response.content, SIZE)
    with Image.open(io.BytesIO(response.content)) as picture:
        return np.asarray(picture.convert("L"), dtype=np.int64)


def engine_rate(model: ServedModel, load: Load, number: int, rows: float, effort: Effort) -> float:
    """Evaluations a second of our engine alone, with the trajectories that make so many rows under a load."""
    return engine_loop.evaluations_per_second(
        model,
        load.asks(number),
        max(1, round(rows / load.evaluations_a_step)),
        warm_up=effort.warm_up / 2,
        seconds=effort.seconds / 2,
    )


def load_ours(place: Place, ours: Server, found: Samples, load: Load, number: int) -> float:
    """Ours under a load; returns its mean batch, in rows."""
    with ours.awake():
        result = _run(place, ours, load.asks(number), CLIENTS, place.effort.seconds)
        rows = asyncio.run(mean_batch(ours.url, result.counted))
    note(found, load.name, ours.name, result)
    found.add(load.name, ours.name, MEAN_BATCH, rows)
    return rows


def loaded(place: Place, server: Server, load: Load, clients: int, number: int, seconds: float) -> Round:
    with server.awake():
        return _run(place, server, load.asks(number), clients, seconds)


def _run(place: Place, server: Server, asks: Iterator[Ask], clients: int, seconds: float) -> Round:
    effort = place.effort
    return asyncio.run(
        closed_loop(server.url, clients, asks, warm_up=effort.warm_up, seconds=seconds, patience=effort.patience)
    )


def note(found: Samples, condition: str, name: str, result: Round) -> None:
    found.add(condition, name, EVALUATIONS, result.evaluations_per_second)
    found.add(condition, name, LATENCY, result.latency())
    if condition == THREE_STEP_COUNTS.name:
        found.add(condition, name, SHORT_LATENCY, result.latency(10))


def _summary(found: Samples, condition: str) -> str:
    return ", ".join(
        f"{subject} {values[-1]:.0f}"
        for (where, subject, quantity), values in found.found.items()
        if (where, quantity) == (condition, EVALUATIONS)
    )
