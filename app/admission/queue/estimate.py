"""When jobs will be done: a simulation of the running batch, job by job instead of turn by turn.

It follows the worker's order: most batch slots are divided among the callers, and go to the jobs of each that are
nearest their end; a quarter is shared by the others. Jobs are admitted from the queue as places become free. The time
of a turn comes from measured turns of similar size. Jobs that are expected to arrive meanwhile make turns longer.
Needs neither Redis nor a clock.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import chain
from operator import itemgetter

from denoised.app.admission.queue.turn_times import WorkerPool

MAX_EVENTS = 200  # simulated ends of jobs; what follows is estimated as work divided by speed
TOLERANCE = 1e-9  # turns, slots
CALLERS_AT_LIMIT = 2  # as in `worker.engine.batch`
ADMISSION_TURNS = 5  # at most, between two admissions; a worker without free slots admits one job each turn
MAX_EXTRA = 100.0  # jobs that are admitted at once
SINGLE_ARRIVALS = 8  # expected jobs that are simulated one by one, before several are put together
FRONT = 1 << 40  # beyond all places in the queue


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
class ExpectedArrivals:
    """The jobs that will arrive if the future is like the recent past.

    Attributes:
        seconds: between two arrivals.
        jobs: that arrived recently, one or more; the expected ones are like these, in turn.
    """

    seconds: float
    jobs: Sequence[RemainingWork]


def completion_times(
    running: Iterable[RemainingWork],
    waiting: Iterable[RemainingWork],
    pool: WorkerPool,
    until: str | None = None,
    expected: ExpectedArrivals | None = None,
) -> dict[str, float]:
    """Seconds from now until each job is done, decoding included.

    until: the job after whose end nothing has to be known.
    expected: which other jobs arrive meanwhile; None if none do.
    """
    running, waiting, arrivals = list(running), list(waiting), _Arrivals(expected)
    ends = _denoised_times(running, waiting, pool, until, arrivals)
    asked = {work.job: work.images for work in (*running, *waiting)}
    if pool.decode_seconds:
        images, free = asked | arrivals.images, 0.0
        for job in sorted(ends, key=ends.__getitem__):
            # The decoder takes finished images while the next ones are denoised, one job after the other.
            free = max(free, ends[job]) + images[job] * pool.decode_seconds
            ends[job] = free
    return {job: end for job, end in ends.items() if job in asked}


def _denoised_times(
    running: Sequence[RemainingWork],
    waiting: Sequence[RemainingWork],
    pool: WorkerPool,
    until: str | None,
    arrivals: _Arrivals,
) -> dict[str, float]:
    """Seconds from now until the last evaluation of each job, including those that arrive meanwhile."""
    batch, queue = [_Member(work) for work in running], _Queue(waiting)
    ends: dict[str, float] = {}
    now, extra, unfinished = 0.0, 1.0, len(running) + len(waiting)
    for _ in range(MAX_EVENTS):
        extra = queue.admit(batch, pool, extra)
        if not unfinished or until in ends:
            return ends
        batch.sort(key=lambda member: (member.work.urgency, member.turns))
        rates = _rates([member.work for member in batch], pool)
        rows = sum(member.rows * rate for member, rate in zip(batch, rates, strict=True))
        turn_seconds = pool.turn_seconds(rows)
        # Advance to the next end, arrival or admission of a job: until then, the rates are constant.
        turns = min(member.turns / rate for member, rate in zip(batch, rates, strict=True))
        turns = min(turns, (arrivals.next_at - now) / turn_seconds)
        if queue.has_place(batch, pool):
            turns = min(turns, ADMISSION_TURNS)
        extra = min(extra + turns * len(pool.turn_times), MAX_EXTRA)
        now += turns * turn_seconds
        for member, rate in zip(batch, rates, strict=True):
            member.turns -= turns * rate
        ended = {member.work.job: now for member in batch if member.turns <= TOLERANCE}
        unfinished -= len(ended.keys() - arrivals.images.keys())
        ends |= ended
        batch = [member for member in batch if member.turns > TOLERANCE]
        if arrivals.next_at - now <= TOLERANCE * turn_seconds:
            queue.add(arrivals.take(turn_seconds))
    left = [replace(member.work, turns=member.turns) for member in batch]
    return ends | _sequential_ends([*left, *queue.left()], now, pool)


class _Arrivals:
    """The expected jobs. Later ones are put together, the more the later, so that there are few of them in all.

    Attributes:
        next_at: when the next one arrives, in seconds from now.
        images: of each job that has arrived, to be decoded.
    """

    def __init__(self, expected: ExpectedArrivals | None) -> None:
        self.images: dict[str, int] = {}
        self.next_at = expected.seconds if expected is not None else math.inf
        self._expected = expected

    def take(self, turn_seconds: float) -> RemainingWork:
        """What arrives at `next_at`. Jobs that are put together take their time until the next arrival.

        They have as many images as all of them would have in the batch at a time (Little 1961): arrivals per second
        times seconds in the batch.
        """
        assert self._expected is not None
        jobs, seconds = self._expected.jobs, self._expected.seconds
        like, together = jobs[len(self.images) % len(jobs)], max(1, int(self.next_at / seconds / SINGLE_ARRIVALS))
        self.next_at += together * seconds
        images = together * like.images
        present = min(images, max(like.images, round(like.images * like.turns * turn_seconds / seconds)))
        work = replace(like, job=f"expected {len(self.images)}", images=present, turns=like.turns * images / present)
        self.images[work.job] = images
        return work


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
        self._added = 0  # the highest place
        for place, work in enumerate(waiting):
            self._of_owner.setdefault(work.owner, deque()).append((place, work))
            self._added = place
        self._heads = [(queue[0][0], owner) for owner, queue in self._of_owner.items()]
        heapify(self._heads)

    def add(self, work: RemainingWork) -> None:
        """A job that has just arrived: the next one, if its caller had none that waited; otherwise behind these."""
        self._added += 1
        queue = self._of_owner.setdefault(work.owner, deque())
        queue.append((self._added if queue else self._added - FRONT, work))
        if len(queue) == 1:
            heappush(self._heads, (queue[0][0], work.owner))

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
