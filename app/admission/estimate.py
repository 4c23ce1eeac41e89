"""When jobs will be done: the running batch, played forward on paper.

The worker's order is followed job by job instead of turn by turn: most lanes go to the jobs
nearest their end, a quarter is shared by the others, and jobs come in from the queue as places
get free. What a turn takes is what turns of so many rows took. No Redis, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from denoised.jobs.worker_report import WorkerReport

EVENTS = 200  # ends of jobs that are followed one by one; what comes after is work over speed
SMALL = 1e-9

Pace = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Work:
    """What is to be done of a job. turns: that each of its images still needs; rows: of an image in a turn."""

    job: str
    images: int
    turns: float
    rows: int

    @property
    def evaluations(self) -> float:
        return self.images * self.turns * self.rows


@dataclass(frozen=True)
class WorkerPool:
    """The workers of a model, as one. paces: of each worker; beside: seconds in which other models have their turn."""

    lanes: int
    reserved: int
    places: int
    paces: tuple[Pace, ...]
    beside: float = 0.0

    @classmethod
    def of(cls, model: str, workers: Iterable[WorkerReport], busy: Iterable[str] = ()) -> WorkerPool | None:
        """Those who serve a model while others are `busy` too; None before anything was measured."""
        serving = [worker for worker in workers if any(card["name"] == model for card in worker.models)]
        paces = [(worker, pace_of(worker, model)) for worker in serving]
        measured = [(worker, pace) for worker, pace in paces if pace]
        if not measured:
            return None
        others = [
            seconds(worker.paces[name], worker.max_batch)
            for worker, _ in measured
            for name in set(busy) - {model}
            if worker.paces.get(name)
        ]
        return cls(
            lanes=sum(worker.max_batch for worker, _ in measured),
            reserved=sum(worker.reserved for worker, _ in measured),
            places=sum(worker.places for worker, _ in measured),
            paces=tuple(pace for _, pace in measured),
            beside=sum(others) / len(measured),
        )

    def turn_seconds(self, rows: float) -> float:
        """What a turn of so many rows takes, spread over all workers."""
        share = rows / len(self.paces)
        return self.beside + sum(seconds(pace, share) for pace in self.paces) / len(self.paces)


def pace_of(worker: WorkerReport, model: str) -> Pace:
    """(rows, seconds) of a worker's turns, from its speed in general where this model had none yet."""
    if pace := worker.paces.get(model):
        return pace
    speed = worker.evaluations_per_second
    return [(1.0, 1 / speed), (1024.0, 1024 / speed)] if speed else []


def seconds(pace: Pace, rows: float) -> float:
    """Of a turn: between measured sizes on a straight line, beyond them half of it is taken to grow with the rows."""
    for (fewer, before), (more, after) in pairwise(pace):
        if fewer <= rows <= more:
            return before + (after - before) * (rows - fewer) / (more - fewer)
    nearest, took = pace[0] if rows < pace[0][0] else pace[-1]
    return took * (1 + rows / nearest) / 2


def finishes(running: Iterable[Work], waiting: Iterable[Work], crew: WorkerPool) -> dict[str, float]:
    """Seconds from now until each job is done, if nothing else comes."""
    here, queue = list(running), deque(waiting)
    ends: dict[str, float] = {}
    now = 0.0
    for _ in range(EVENTS):
        _admit(here, queue, crew.places)
        if not here:
            return ends
        here.sort(key=lambda work: work.turns)
        rates = _rates(here, crew)
        turns = min(work.turns / rate for work, rate in zip(here, rates, strict=True))
        rows = sum(work.images * work.rows * rate for work, rate in zip(here, rates, strict=True))
        now += turns * crew.turn_seconds(rows)
        after = [replace(work, turns=work.turns - turns * rate) for work, rate in zip(here, rates, strict=True)]
        ends |= {work.job: now for work in after if work.turns <= SMALL}
        here = [work for work in after if work.turns > SMALL]
    return ends | _roughly([*here, *queue], now, crew)


def _admit(here: list[Work], queue: deque[Work], places: int) -> None:
    taken = sum(work.images for work in here)
    while queue and taken < places:
        here.append(queue.popleft())
        taken += here[-1].images


def _rates(here: Sequence[Work], crew: WorkerPool) -> list[float]:
    """The share of turns in which the images of each job take part; those nearest their end come first."""
    total = sum(work.images for work in here)
    if total <= crew.lanes:
        return [1.0] * len(here)
    certain = crew.lanes - crew.reserved
    shared = crew.reserved / (total - certain)
    rates = []
    for work in here:
        sure = min(work.images, certain)
        certain -= sure
        rates.append((sure + (work.images - sure) * shared) / work.images)
    return rates


def _roughly(jobs: Iterable[Work], now: float, crew: WorkerPool) -> dict[str, float]:
    """One after the other, at the speed of full turns."""
    each = crew.turn_seconds(crew.lanes) / crew.lanes
    ends = {}
    for work in jobs:
        now += work.evaluations * each
        ends[work.job] = now
    return ends
