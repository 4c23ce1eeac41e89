"""When jobs will be done: a simulation of the running batch, job by job instead of turn by turn.

It follows the worker's order: most batch slots are divided among the callers, and go to the jobs of each that are
nearest their end; a quarter is shared by the others. Jobs are admitted from the queue as places become free. The time
of a turn comes from measured turns of similar size.
Needs neither Redis nor a clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from operator import itemgetter

from denoised.jobs.worker_report import WorkerReport

MAX_EVENTS = 200  # simulated ends of jobs; what follows is estimated as work divided by speed
TOLERANCE = 1e-9  # turns, slots
CALLERS_AT_LIMIT = 2  # as in `worker.engine.batch`
ADMISSION_TURNS = 5  # at most, between two admissions; a worker without free slots admits one job each turn
MAX_EXTRA = 100.0  # jobs that are admitted at once

TurnTimes = Sequence[tuple[float, float]]  # (rows, seconds) of measured turns, by rows


@dataclass(frozen=True)
class RemainingWork:
    """What a job still needs.

    Attributes:
        images: of the job; each is decoded in the end.
        turns: that each of its images needs.
        rows: per image and turn, in the mean: 2 with guidance, fewer if it applies to some noise levels.
        owner, weight, urgency: see `worker.engine.fair_slots.Caller`.
    """

    job: str
    images: int
    turns: float
    rows: float
    owner: str = ""
    weight: float = 1.0
    urgency: int = 1

    @property
    def evaluations(self) -> float:
        return self.images * self.turns * self.rows


@dataclass(frozen=True)
class WorkerPool:
    """The workers of one model, as if they were one.

    Attributes:
        slots: images per turn.
        reserved: slots that are shared by the jobs far from their end.
        places: images of one caller that can be admitted; twice as many of all callers together.
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
    running: Iterable[RemainingWork], waiting: Iterable[RemainingWork], pool: WorkerPool, until: str | None = None
) -> dict[str, float]:
    """Seconds from now until each job is done, decoding included, if no other job arrives.

    until: the job after whose end nothing has to be known.
    """
    running, waiting = list(running), list(waiting)
    ends = denoised_times(running, waiting, pool, until)
    if not pool.decode_seconds:
        return ends
    images, free = {work.job: work.images for work in (*running, *waiting)}, 0.0
    for job in sorted(ends, key=ends.__getitem__):
        # The decoder takes finished images while the next ones are denoised, one job after the other.
        free = max(free, ends[job]) + images[job] * pool.decode_seconds
        ends[job] = free
    return ends


def denoised_times(
    running: Iterable[RemainingWork], waiting: Iterable[RemainingWork], pool: WorkerPool, until: str | None = None
) -> dict[str, float]:
    """Seconds from now until the last evaluation of each job. until: see `completion_times`."""
    batch, queue = [_Member(work) for work in running], _Queue(waiting)
    ends: dict[str, float] = {}
    now, extra = 0.0, 1.0
    for _ in range(MAX_EVENTS):
        extra = queue.admit(batch, pool, extra)
        if not batch or until in ends:
            return ends
        batch.sort(key=lambda member: (member.work.urgency, member.turns))
        rates = _rates([member.work for member in batch], pool)
        # Advance to the next end of a job, or admission of others: until then, the rates are constant.
        turns = min(member.turns / rate for member, rate in zip(batch, rates, strict=True))
        if queue.has_place(batch, pool):
            turns = min(turns, ADMISSION_TURNS)
        extra = min(extra + turns * len(pool.turn_times), MAX_EXTRA)
        rows = sum(member.rows * rate for member, rate in zip(batch, rates, strict=True))
        now += turns * pool.turn_seconds(rows)
        for member, rate in zip(batch, rates, strict=True):
            member.turns -= turns * rate
        ends |= {member.work.job: now for member in batch if member.turns <= TOLERANCE}
        batch = [member for member in batch if member.turns > TOLERANCE]
    left = [replace(member.work, turns=member.turns) for member in batch]
    return ends | _sequential_ends([*left, *queue.left()], now, pool)


class _Member:
    """A job in the simulated batch. turns: that are left; rows: of all its images in one turn."""

    def __init__(self, work: RemainingWork) -> None:
        self.work = work
        self.turns = work.turns
        self.rows = work.images * work.rows


class _Queue:
    """The waiting jobs of each caller, with their places in the order in which they are drawn."""

    def __init__(self, waiting: Iterable[RemainingWork]) -> None:
        self._of_owner: dict[str, deque[tuple[int, RemainingWork]]] = {}
        for place, work in enumerate(waiting):
            self._of_owner.setdefault(work.owner, deque()).append((place, work))
        self._heads = [(queue[0][0], owner) for owner, queue in self._of_owner.items()]
        heapify(self._heads)

    def has_place(self, batch: Sequence[_Member], pool: WorkerPool) -> bool:
        """Whether jobs wait for their admission alone."""
        return bool(self._heads) and sum(member.work.images for member in batch) < pool.places

    def admit(self, batch: list[_Member], pool: WorkerPool, extra: float) -> float:
        """Move jobs into the batch: while it has free slots, and `extra` jobs beyond, while it has places for their
        callers. Returns what is left of `extra`.
        """
        images = Counter[str]()
        for member in batch:
            images[member.work.owner] += member.work.images
        total, passed_over = images.total(), []
        while self._heads and total < CALLERS_AT_LIMIT * pool.places and (total < pool.slots or extra >= 1):
            head = heappop(self._heads)
            owner = head[1]
            if images[owner] >= pool.places:
                passed_over.append(head)
                continue
            extra -= 0 if total < pool.slots else 1
            work = self._draw(owner)
            batch.append(_Member(work))
            images[owner] += work.images
            total += work.images
        for head in passed_over:
            heappush(self._heads, head)
        return extra

    def _draw(self, owner: str) -> RemainingWork:
        queue = self._of_owner[owner]
        work = queue.popleft()[1]
        if queue:
            heappush(self._heads, (queue[0][0], owner))
        return work

    def left(self) -> list[RemainingWork]:
        return [work for _, work in sorted(chain(*self._of_owner.values()), key=itemgetter(0))]


def _rates(batch: Sequence[RemainingWork], pool: WorkerPool) -> list[float]:
    """The share of turns in which the images of each job take part. batch: in the order of the running batch."""
    total = sum(work.images for work in batch)
    if total <= pool.slots:
        return [1.0] * len(batch)
    certain = pool.slots - pool.reserved  # slots for images that take part in every turn
    shared = pool.reserved / (total - certain)  # rate of all other images
    slots = _divide(batch, certain, shared)
    rates = []
    for work in batch:
        sure = min(work.images, slots[work.owner])
        slots[work.owner] -= sure
        rates.append((sure + (work.images - sure) * shared) / work.images)
    return rates


def _divide(batch: Sequence[RemainingWork], slots: float, shared: float) -> dict[str, float]:
    """The certain slots of each caller: in proportion to its weight, and no more than it has images.

    shared: the rate of images in other slots, which count against a caller's share, too.
    """
    images, weights = Counter[str](), {}
    for work in batch:
        images[work.owner] += work.images
        weights[work.owner] = work.weight / work.rows
    divided, left = dict.fromkeys(images, 0.0), set(images)
    while left and slots > TOLERANCE:
        others = shared * sum(images[owner] for owner in left)
        level = (slots * (1 - shared) + others) / sum(weights[owner] for owner in left)
        share = {owner: (level * weights[owner] - shared * images[owner]) / (1 - shared) for owner in left}
        # A caller with few images needs no more than these; one with very many has its share in other slots.
        settled = {owner for owner in left if not 0 < share[owner] < images[owner]} or left
        divided |= {owner: min(float(images[owner]), max(0.0, share[owner])) for owner in settled}
        slots -= sum(divided[owner] for owner in settled)
        left -= settled
    return divided


def _sequential_ends(jobs: Iterable[RemainingWork], now: float, pool: WorkerPool) -> dict[str, float]:
    """The ends of jobs that run one after the other, at the speed of full turns."""
    ends = {}
    for work in jobs:
        now += work.evaluations * pool.seconds_per_evaluation
        ends[work.job] = now
    return ends
