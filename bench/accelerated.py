"""The loads over HTTP on an accelerator: ours and the peers in each precision, the peers also compiled.

All servers start once and live through the run; all but one are held still. One that fails is left out from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bench import names
from bench.errors import BenchError
from bench.load import REAL_TRAFFIC, THREE_STEP_COUNTS, TWENTY_STEPS
from bench.servers import FOLDER, Bare, Manner, Server, bare, denoised_on, peer
from bench.serving import CLIENTS, NEAR, PROBE, engine_rate, load_ours, loaded, note, picture_of
from bench.trial import Trial
from denoised.model.serving.loading import load_model
from denoised.model.serving.protocol import ServedModel
from denoised.model.serving.sampling import sample
from denoised.worker.model_loading import DEFAULT, load_models

LOADS = (THREE_STEP_COUNTS, REAL_TRAFFIC)
ROUGHLY = 2.0  # grey levels: how far on average a picture in less than float32 may be from that in float32
BARE_SECONDS = 1.5


class Subject(Protocol):
    """What is measured once a round."""

    @property
    def name(self) -> str: ...

    def measure(self, trial: Trial, number: int) -> None: ...


@dataclass(frozen=True)
class Ours:
    """Served, and our engine alone with as many trajectories; their loops take turns."""

    server: Server
    model: ServedModel
    manner: Manner

    @property
    def name(self) -> str:
        return self.server.name

    def measure(self, trial: Trial, number: int) -> None:
        found, effort = trial.found, trial.place.effort
        for load in LOADS:
            rows = load_ours(trial.place, self.server, found, load, number)
            rate = engine_rate(self.model, load, number, rows, effort)
            found.add(load.name, self.manner.of(names.ENGINE), names.EVALUATIONS, rate)
        _measure_one_client(trial, self.server, number)


@dataclass(frozen=True)
class Peer:
    """Served; alone: with one client too."""

    server: Server
    alone: bool

    @property
    def name(self) -> str:
        return self.server.name

    def measure(self, trial: Trial, number: int) -> None:
        for load in LOADS:
            result = loaded(trial.place, self.server, load, CLIENTS, number, trial.place.effort.seconds)
            note(trial.found, load.name, self.name, result)
        if self.alone:
            _measure_one_client(trial, self.server, number)


@dataclass(frozen=True)
class BareLoop:
    """One measurement counts for both loads: the loop knows none."""

    loop: Bare

    @property
    def name(self) -> str:
        return self.loop.program.name

    def measure(self, trial: Trial, number: int) -> None:
        rate = self.loop.evaluations_per_second(min(BARE_SECONDS, trial.place.effort.seconds))
        for load in LOADS:
            trial.found.add(load.name, self.name, names.EVALUATIONS, rate)
            trial.found.add(load.name, self.name, names.CHOSEN_BATCH, self.loop.images)


def measure_loads(trial: Trial) -> None:
    """Start everybody, then measure them round by round until the rounds are done or the time is up."""
    try:
        take_turns(trial, _started(trial))
    finally:
        trial.place.say("stopping the servers")
        trial.stop_all()


def take_turns(trial: Trial, subjects: Sequence[Subject]) -> None:
    """Each once a round, without those that have failed."""
    left = list(subjects)
    trial.found.add(names.WINDOW, names.EVERYBODY, names.SECONDS, trial.place.effort.seconds)
    for number in range(trial.place.effort.rounds):
        for subject in list(left):
            if trial.is_over:
                trial.place.say(f"the time is up before {subject.name}, round {number + 1}")
                return
            if trial.attempt(subject.name, partial(_measured, subject, trial, number)) is None:
                left.remove(subject)
            trial.keep()


def _measured(subject: Subject, trial: Trial, number: int) -> bool:
    subject.measure(trial, number)
    rates = {
        condition: f"{values[-1]:.0f}"
        for (condition, name, quantity), values in trial.found.found.items()
        if (name, quantity) == (subject.name, names.EVALUATIONS)
    }
    told = ", ".join(f"{condition} {rate} evaluations/s" for condition, rate in rates.items())
    trial.place.say(f"round {number + 1}, {subject.name}: {told}")
    return True


def _measure_one_client(trial: Trial, server: Server, number: int) -> None:
    result = loaded(trial.place, server, TWENTY_STEPS, 1, number, trial.place.effort.sweep_seconds)
    trial.found.add(names.ONE_CLIENT, server.name, names.LATENCY, result.latency())


def _started(trial: Trial) -> list[Subject]:
    """Those that came up and make the right picture, in the order of their turns.

    Ours first and alone, since a worker measures at its start how many images an evaluation is to hold; then all
    the peers at once, since torch takes its time to compile them.
    """
    expected = _expected_picture()
    manners = [Manner(trial.device, precision) for precision in trial.precisions]
    ours = [trial.attempt(m.of(names.OURS), partial(_start_ours, trial, m, expected)) for m in manners]
    ways = (False, True) if trial.compiled else (False,)
    both = [Manner(trial.device, precision, way) for way in ways for precision in trial.precisions]
    starting: dict[str, Callable[[], Subject]] = {}
    for name, start in _peers(trial, expected).items():
        starting |= {manner.of(name): partial(start, manner) for manner in both}
    trial.place.say(f"starting {len(starting)} peers")
    with ThreadPoolExecutor(len(starting)) as pool:
        peers = list(pool.map(trial.attempt, starting, starting.values()))
    subjects = [subject for subject in (*ours, *peers) if subject is not None]
    trial.place.say(f"{len(subjects)} are ready")
    return subjects


def _peers(trial: Trial, expected: NDArray[np.int64]) -> dict[str, Callable[[Manner], Subject]]:
    """What starts each of them; the lock, which is the slowest, has its turn last."""

    def batching(manner: Manner) -> Subject:
        name = manner.of(names.BATCHING)
        return Peer(_paused(trial, peer(name, "batching", trial.place.folder, manner), expected, manner), alone=True)

    def loop(manner: Manner) -> Subject:
        made = trial.start(bare(trial.place.folder, manner.of(names.BARE), manner))
        trial.place.say(f"{made.program.name}: {made.images} images, {made.layout}")
        return BareLoop(made)

    def locked(manner: Manner) -> Subject:
        name = manner.of(names.LOCKED)
        return Peer(_paused(trial, peer(name, "locked", trial.place.folder, manner), expected, manner), alone=False)

    return {names.BATCHING: batching, names.BARE: loop, names.LOCKED: locked}


def _start_ours(trial: Trial, manner: Manner, expected: NDArray[np.int64]) -> Subject:
    model = load_models([], device=manner.device, max_images=1, precision=manner.precision)[DEFAULT]
    return Ours(_paused(trial, denoised_on(manner, trial.place.folder), expected, manner), model, manner)


def _paused(
    trial: Trial, starting: AbstractContextManager[Server], expected: NDArray[np.int64], manner: Manner
) -> Server:
    """A server that has made the right picture and is held still."""
    started = trial.start(starting)
    apart = np.abs(picture_of(started) - expected)
    trial.place.say(
        f"{started.name} is ready; its picture is {apart.mean():.2f} grey levels off, {apart.max()} at most"
    )
    if apart.max() > NEAR if manner.precision == "float32" else apart.mean() > ROUGHLY:
        raise BenchError(f"{started.name} makes another picture of {PROBE}: {apart.max()} grey levels apart")
    return started


@torch.no_grad()
def _expected_picture() -> NDArray[np.int64]:
    """Of the request that all are asked first: ours on the CPU, grey levels (H, W)."""
    model = load_model(FOLDER)
    x0 = sample(model, [PROBE.label], seed=PROBE.seed, sampler="ddim", steps=PROBE.steps)
    return np.asarray(model.decode(x0)[0], dtype=np.int64).squeeze(-1)
