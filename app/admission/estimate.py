"""When jobs will be done: a simulation of the running batch, job by job instead of turn by turn.

It follows the worker's order: most batch slots go to the jobs nearest their end, a quarter is shared by the others, and
jobs are admitted from the queue as places become free. The time of a turn comes from measured turns of similar size.
Needs neither Redis nor a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from denoised.jobs.worker_report import WorkerReport

MAX_EVENTS = 200  # simulated ends of jobs; what follows is estimated as work divided by speed
TOLERANCE = 1e-9  # turns

TurnTimes = Sequence[tuple[float, float]]  # (rows, seconds) of measured turns, by rows


@dataclass(frozen=True)
class RemainingWork:
    """What a job still needs.

    Attributes:
        images: of the job; each is decoded in the end.
        turns: that each of its images needs.
        rows: per image and turn, in the mean: 2 with guidance, fewer if it applies to some noise levels.
    """

    job: str
    images: int
    turns: float
    rows: float

    @property
    def evaluations(self) -> float:
        return self.images * self.turns * self.rows


@dataclass(frozen=True)
class WorkerPool:
    """The workers of one model, as if they were one.

    Attributes:
        slots: images per turn.
        reserved: slots that are shared by the jobs far from their end.
        places: images that can be admitted.
        turn_times: of each worker.
        other_models_seconds: between two turns, spent on turns of other models.
        decode_seconds: for one finished image, with all decoders at work; 0 without a decoder.
    """

    slots: int
    reserved: int
    places: int
    turn_times: tuple[TurnTimes, ...]
    other_models_seconds: float = 0.0
    decode_seconds: float = 0.0

    @classmethod
    def of_model(cls, model: str, workers: Iterable[WorkerReport], busy: Iterable[str] = ()) -> WorkerPool | None:
        """The workers that serve a model; None before any has measured its speed. busy: models that have work."""
        serving = [worker for worker in workers if any(card["name"] == model for card in worker.models)]
        measured = [(worker, times) for worker in serving if (times := turn_times(worker, model))]
        if not measured:
            return None
        others = [
            turn_seconds(worker.paces[name], worker.batch_of(name)[0])
            for worker, _ in measured
            for name in set(busy) - {model}
            if worker.paces.get(name)
        ]
        slots, reserved, places = map(sum, zip(*(worker.batch_of(model) for worker, _ in measured), strict=True))
        decoding = [seconds for worker, _ in measured if (seconds := worker.decode_seconds.get(model))]
        return cls(
            slots,
            reserved,
            places,
            turn_times=tuple(times for _, times in measured),
            other_models_seconds=sum(others) / len(measured),
            decode_seconds=sum(decoding) / len(decoding) ** 2 if decoding else 0.0,
        )

    @property
    def seconds_per_evaluation(self) -> float:
        """Of one row in full turns."""
        return self.turn_seconds(self.slots) / self.slots

    def turn_seconds(self, rows: float) -> float:
        """The time of a turn of so many rows, spread over all workers."""
        share = rows / len(self.turn_times)
        mean = sum(turn_seconds(times, share) for times in self.turn_times) / len(self.turn_times)
        return self.other_models_seconds + mean


def turn_times(worker: WorkerReport, model: str) -> TurnTimes:
    """A worker's measured turns of a model; derived from its overall speed when the model had none yet."""
    if times := worker.paces.get(model):
        return times
    speed = worker.evaluations_per_second
    return [(1.0, 1 / speed), (1024.0, 1024 / speed)] if speed else []


def turn_seconds(times: TurnTimes, rows: float) -> float:
    """The time of one turn: interpolated between measured sizes; beyond them, half of it grows with the rows."""
    for (fewer, before), (more, after) in pairwise(times):
        if fewer <= rows <= more:
            return before + (after - before) * (rows - fewer) / (more - fewer)
    nearest, seconds = times[0] if rows < times[0][0] else times[-1]
    return seconds * (1 + rows / nearest) / 2


def completion_times(
    running: Iterable[RemainingWork], waiting: Iterable[RemainingWork], pool: WorkerPool
) -> dict[str, float]:
    """Seconds from now until each job is done, decoding included, if no other job arrives."""
    running, waiting = list(running), list(waiting)
    ends = denoised_times(running, waiting, pool)
    if not pool.decode_seconds:
        return ends
    images, free = {work.job: work.images for work in (*running, *waiting)}, 0.0
    for job in sorted(ends, key=ends.__getitem__):
        # The decoder takes finished images while the next ones are denoised, one job after the other.
        free = max(free, ends[job]) + images[job] * pool.decode_seconds
        ends[job] = free
    return ends


def denoised_times(
    running: Iterable[RemainingWork], waiting: Iterable[RemainingWork], pool: WorkerPool
) -> dict[str, float]:
    """Seconds from now until the last evaluation of each job."""
    batch, queue = list(running), deque(waiting)
    ends: dict[str, float] = {}
    now = 0.0
    for _ in range(MAX_EVENTS):
        _admit(batch, queue, pool.places)
        if not batch:
            return ends
        batch.sort(key=lambda work: work.turns)
        rates = _rates(batch, pool)
        # Advance to the next end of a job: until then, the rates are constant.
        turns = min(work.turns / rate for work, rate in zip(batch, rates, strict=True))
        rows = sum(work.images * work.rows * rate for work, rate in zip(batch, rates, strict=True))
        now += turns * pool.turn_seconds(rows)
        advanced = [replace(work, turns=work.turns - turns * rate) for work, rate in zip(batch, rates, strict=True)]
        ends |= {work.job: now for work in advanced if work.turns <= TOLERANCE}
        batch = [work for work in advanced if work.turns > TOLERANCE]
    return ends | _sequential_ends([*batch, *queue], now, pool)


def _admit(batch: list[RemainingWork], queue: deque[RemainingWork], places: int) -> None:
    """Move jobs from the queue into the batch while it has places."""
    admitted = sum(work.images for work in batch)
    while queue and admitted < places:
        batch.append(queue.popleft())
        admitted += batch[-1].images


def _rates(batch: Sequence[RemainingWork], pool: WorkerPool) -> list[float]:
    """The share of turns in which the images of each job take part. batch: the jobs nearest their end first."""
    total = sum(work.images for work in batch)
    if total <= pool.slots:
        return [1.0] * len(batch)
    certain = pool.slots - pool.reserved  # slots for images that take part in every turn
    shared = pool.reserved / (total - certain)  # rate of all other images
    rates = []
    for work in batch:
        sure = min(work.images, certain)
        certain -= sure
        rates.append((sure + (work.images - sure) * shared) / work.images)
    return rates


def _sequential_ends(jobs: Iterable[RemainingWork], now: float, pool: WorkerPool) -> dict[str, float]:
    """The ends of jobs that run one after the other, at the speed of full turns."""
    ends = {}
    for work in jobs:
        now += work.evaluations * pool.seconds_per_evaluation
        ends[work.job] = now
    return ends
