"""From turns of the engine to Redis: progress, frames, pictures, ends of jobs.

A thread of its own, so that decoding, encoding and Redis writes do not hold up the next
evaluation. Everything of one turn is one round trip. While Redis is away it tries again;
the engine is held up only when the queue between them is full.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable

from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.store import Store, UpdateResult
from denoised.jobs.update import JobUpdate
from denoised.worker.delivery.attempt import SURE_SECONDS, TELL_SECONDS, AttemptState
from denoised.worker.engine.turn import Advanced, Turn
from denoised.worker.errors import TrajectoryError

log = logging.getLogger("denoised.worker")

RETRY_SECONDS = 0.25
LOOK_SECONDS = 0.25  # how often who waits for room in the queue looks whether it is worth it


Item = tuple[Callable[[], None], list[AttemptState]]


class Publisher(threading.Thread):
    """Writes what turns bring: at once of jobs that are watched, of the others, as long as they go on, together every
    `TELL_SECONDS`. No event is left out for that.

    on_over(job, last) is called, in this thread, when a job is over for this worker. last: the write by which it ended
    or was given back; None when another's did that (it was canceled, or taken by another attempt), or nobody knows.
    Where a job's images are is saved every `SAVE_SECONDS` (sooner at first, or every turn: see `AttemptState`), so that
    another worker can go on from there.
    """

    def __init__(
        self, store: Store, on_over: Callable[[AttemptState, JobUpdate | None], None], depth: int = 64
    ) -> None:
        super().__init__(name="publisher", daemon=True)
        self._store = store
        self._on_over = on_over
        self._queue: queue.Queue[Item | None] = queue.Queue(depth)
        self._abandon = threading.Event()
        self._told_at = -math.inf  # when even those were written whom nobody watches
        self._patient_until = math.inf

    def publish(self, turn: Turn, jobs: list[AttemptState]) -> None:
        """Queue a turn's outcome; `jobs` are those of its trajectories."""
        self._put((lambda: self._publish(turn, jobs), jobs))

    def fail(self, job: AttemptState, code: str, message: str) -> None:
        """Queue the failure of a job."""
        self._put((lambda: self._fail(job, code, message), [job]))

    def give_back(self, job: AttemptState) -> None:
        """Queue that this worker stops at a job which another is to take up."""
        self._put((lambda: self._give_back(job), [job]))

    def let_go(self, job: AttemptState) -> None:
        """Queue that a job has ended elsewhere (it was canceled): nothing more is written of it."""
        self._put((lambda: self._let_go(job), [job]))

    def settle(self) -> None:
        """Wait until all is written, but not for long. For jobs that are accused: what their worker had done when it is
        lost, too, is then known, and a job that ends its worker at a certain turn is found out by that."""
        with self._queue.all_tasks_done:
            self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, SURE_SECONDS)

    def wait_no_longer_than(self, moment: float) -> None:
        """From then (`time.monotonic`) on nobody waits for room in the queue: what finds none is lost, and its jobs'
        leases run out. For a worker that is told to stop while Redis is away."""
        self._patient_until = moment

    def close(self, timeout: float) -> bool:
        """Write what is queued, for at most `timeout` seconds, then end. Whether all of it was written."""
        end = time.monotonic() + timeout
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout)
            self.join(max(0.0, end - time.monotonic()))
        done = not self.is_alive()
        if not done:
            log.error("%d turns could not be written before the end", self._queue.qsize() + 1)
        self._abandon.set()
        return done

    def _put(self, item: Item) -> None:
        while time.monotonic() < self._patient_until:
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=LOOK_SECONDS)
                return

    def run(self) -> None:
        while (item := self._queue.get()) is not None:
            action, jobs = item
            try:
                action()
            except Exception as error:
                log.exception("a turn could not be published")
                self._fail_all(jobs, error)
            self._queue.task_done()

    def _publish(self, turn: Turn, jobs: list[AttemptState]) -> None:
        going = [job for job in jobs if not job.over]
        outcome = _by_job(turn)
        for job in going:
            job.note(turn.batch, *outcome[job.id])
        told = self._is_time()
        due = [job for job in going if told or job.watched or job.needs_flush]
        writes = [job.take_pending_update() for job in due]
        for job, write, written in zip(due, writes, self._apply(writes), strict=True):
            if write.status is not None or not written:
                self._end(job, write, written)
                continue
            job.watched = job.watched or written is UpdateResult.WATCHED
            if "losses" in write.fields:
                job.apart = job.accused = False

    def _is_time(self) -> bool:
        """Whether this turn is written for those, too, whom nobody watches."""
        if time.monotonic() - self._told_at < TELL_SECONDS:
            return False
        self._told_at = time.monotonic()
        return True

    def _fail(self, job: AttemptState, code: str, message: str) -> None:
        if job.over:
            return
        write = job.take_pending_update()
        write.end("failed", {"code": code, "message": message})
        (written,) = self._apply([write])
        self._end(job, write, written)

    def _fail_all(self, jobs: list[AttemptState], error: Exception) -> None:
        """After a defect of our own: no job may be left behind without an end."""
        for job in jobs:
            try:
                self._fail(job, "internal_error", f"{type(error).__name__}: {error}")
            except Exception:
                log.exception("failure could not be written; the lease will run out", extra=job.named)

    def _give_back(self, job: AttemptState) -> None:
        if job.over:
            return
        write = job.take_pending_update()
        write.status = "queued"
        write.fields |= {"step": job.step, "evaluations": job.evaluations}
        job.save(write)
        write.events.append({"type": "queued", "queue_position": 0, "eta_seconds": None})
        (written,) = self._apply([write])
        self._end(job, write, written)

    def _let_go(self, job: AttemptState) -> None:
        if not job.over:
            self._end(job)

    def _end(
        self, job: AttemptState, write: JobUpdate | None = None, written: UpdateResult = UpdateResult.REFUSED
    ) -> None:
        job.over = True
        self._on_over(job, write if written else None)

    def _apply(self, writes: list[JobUpdate]) -> list[UpdateResult]:
        """Until Redis took it; the store applies a repeated write once."""
        if not writes:
            return []
        waiting_since: float | None = None
        while not self._abandon.is_set():
            try:
                return self._store.write_all(writes)
            except StoreUnavailable as error:
                if waiting_since is None:
                    waiting_since = time.monotonic()
                    log.warning("progress waits: %s", error)
                self._abandon.wait(RETRY_SECONDS)
        return [UpdateResult.REFUSED] * len(writes)


def _by_job(turn: Turn) -> dict[str, tuple[list[Advanced], TrajectoryError | None]]:
    """What a turn brought for each job: its images that moved, and the first failure."""
    errors = {trajectory.job: error for trajectory, error in reversed(turn.failed)}
    items: dict[str, list[Advanced]] = {job: [] for job in errors}
    for item in turn.advanced:
        items.setdefault(item.trajectory.job, []).append(item)
    return {job: (moved, errors.get(job)) for job, moved in items.items()}
