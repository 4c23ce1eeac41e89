"""Writes the results of turns to Redis: progress, frames, pictures, ends of jobs.

It runs in a thread of its own, so that encoding and Redis do not delay the next evaluation; latents are decoded in
another one (`worker.delivery.pictures.decoder`). All updates of one turn are one round trip. While Redis does not
answer, it tries again; the engine waits only when the queue between the two threads is full.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from denoised.jobs.errors import StoreFull, StoreUnavailable
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate, UpdateResult
from denoised.worker.delivery.attempt import FLUSH_SECONDS, AttemptState
from denoised.worker.delivery.memory_declines import MemoryDeclines
from denoised.worker.delivery.pictures.decoder import DecoderThread, OnDecoded, no_record
from denoised.worker.delivery.pictures.outputs import Picture
from denoised.worker.device_health import DeviceHealth
from denoised.worker.engine.turn import Advanced, Turn
from denoised.worker.errors import TrajectoryError

log = logging.getLogger("denoised.worker")

RETRY_SECONDS = 0.25
POLL_SECONDS = 0.25  # how often a caller that waits for room in the queue checks its deadline

Item = tuple[Callable[[], None], list[AttemptState]]
Results = dict[str, tuple[list[Advanced], TrajectoryError | None]]  # by job
REFUSED = UpdateResult(0)
NO_FIELDS: Mapping[str, str] = {}


class Publisher(threading.Thread):
    """Writes updates: at once for jobs that are watched, together every `FLUSH_SECONDS` for others that continue.

    No event is left out. Resume points are written every `SAVE_SECONDS` (sooner at first, or every turn: see
    `AttemptState`), so that another worker can continue from there.

    on_over(attempt, last) is called, in this thread, when a job is over for this worker. last: the update that ended
    or requeued it; None when another process did that (a cancel, another attempt) or the update was refused.
    """

    def __init__(
        self,
        store: Store,
        on_over: Callable[[AttemptState, JobUpdate | None], None],
        on_decoded: OnDecoded = no_record,
        depth: int = 64,
        device: DeviceHealth | None = None,
        declines: MemoryDeclines | None = None,
    ) -> None:
        """on_decoded: see `DecoderThread`; depth: turns that may wait to be written; device: by default one that is
        always sound; declines: the jobs that are left to other workers for lack of memory."""
        super().__init__(name="publisher", daemon=True)
        self._store = store
        self._on_over = on_over
        self._queue: queue.Queue[Item | None] = queue.Queue(depth)
        self._device = device or DeviceHealth()
        self._declines = declines
        self._decoder = DecoderThread(self._put_pictures, on_decoded, self._device)
        self._abandon = threading.Event()
        self._flushed_at = -math.inf  # when unwatched jobs were written last
        self._deadline = math.inf

    # The engine's thread

    def publish(self, turn: Turn, attempts: list[AttemptState]) -> None:
        """Queue the results of a turn. attempts: those of its trajectories."""
        self._put((lambda: self._publish(turn, attempts), attempts))

    def decode(self, attempt: AttemptState, finished: Mapping[int, Tensor]) -> None:
        """Have images decoded that an earlier attempt has finished: x_0 (C, h, w) by index."""
        if not attempt.request.makes_pictures:
            self._put_pictures(attempt, [], None)
            return
        self._decoder.submit(attempt, finished)

    def fail(self, attempt: AttemptState, code: str, message: str) -> None:
        """Queue the failure of a job."""
        self._put((lambda: self._fail(attempt, code, message), [attempt]))

    def requeue(self, attempt: AttemptState) -> None:
        """Queue that this worker stops and another continues a job."""
        self._put((lambda: self._requeue(attempt), [attempt]))

    def give_back(self, attempt: AttemptState, *, has_wrong_results: bool) -> None:
        """Queue that the device has failed, and another worker continues from the last resume point that was saved.

        has_wrong_results: the next attempt starts over, since nothing can be trusted that this worker has made.
        """
        self._put((lambda: self._give_back(attempt, has_wrong_results), [attempt]))

    def abandon(self, attempt: AttemptState) -> None:
        """Queue that a job has ended elsewhere (it was canceled): nothing more is written for it."""
        self._put((lambda: self._abandon_attempt(attempt), [attempt]))

    def flush(self, timeout: float) -> None:
        """Wait until everything queued is written, but at most `timeout` seconds."""
        with self._queue.all_tasks_done:
            self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, timeout)

    def finish_decoding(self, timeout: float) -> None:
        """Wait until all finished images are decoded, but at most `timeout` seconds."""
        end = time.monotonic() + timeout
        self.flush(timeout)  # of the last turn, whose images are submitted in the publisher's thread
        self._decoder.wait(max(0.0, end - time.monotonic()))

    def set_deadline(self, moment: float) -> None:
        """From this moment (`time.monotonic`) on, do not wait for room in the queue.

        What finds no room is dropped, and the leases of its jobs expire. For a worker that stops while Redis does not
        answer.
        """
        self._deadline = moment

    def close(self, timeout: float) -> bool:
        """Write what is queued for at most `timeout` seconds, then stop. Returns whether all of it was written."""
        end = time.monotonic() + timeout
        self._decoder.close()
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout)
            self.join(max(0.0, end - time.monotonic()))
        done = not self.is_alive()
        if not done:
            log.error("%d turns were not written before the worker stopped", self._queue.qsize() + 1)
        self._abandon.set()
        return done

    def _put(self, item: Item) -> None:
        while time.monotonic() < self._deadline:
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=POLL_SECONDS)
                return

    # The decoder's thread

    def _put_pictures(self, attempt: AttemptState, pictures: Sequence[Picture], error: TrajectoryError | None) -> None:
        self._put((lambda: self._publish_pictures(attempt, pictures, error), [attempt]))

    # The publisher's thread

    def run(self) -> None:
        self._decoder.start()
        while (item := self._queue.get()) is not None:
            action, attempts = item
            try:
                action()
            except Exception as error:
                if self._device.is_sound_after(error):
                    log.exception("turn not published")
                    self._fail_all(attempts, error)
            self._queue.task_done()

    def _publish(self, turn: Turn, attempts: list[AttemptState]) -> None:
        active = [attempt for attempt in attempts if not attempt.over]
        results, flush, declined = _by_job(turn), self._is_flush_due(), dict[str, Mapping[str, str]]()
        for attempt in active:
            items, error = results[attempt.id]
            declined[attempt.id] = self._decline(attempt, error)
            error = None if declined[attempt.id] else error
            attempt.record_step(turn.batch, items, error, turn.seconds, self._device.is_sound_after)
            if error is None and (finished := attempt.finished_latents(items)):
                self._decoder.submit(attempt, finished)
        due = [attempt for attempt in active if flush or attempt.watched or attempt.needs_flush]
        self._write_pending([attempt for attempt in due if not declined[attempt.id]])
        for attempt in active:
            if declined[attempt.id]:
                self._requeue(attempt, declined[attempt.id])

    def _publish_pictures(
        self, attempt: AttemptState, pictures: Sequence[Picture], error: TrajectoryError | None
    ) -> None:
        if attempt.over:
            return
        if declined := self._decline(attempt, error):
            self._requeue(attempt, declined)
            return
        attempt.record_pictures(pictures, error)
        self._write_pending([attempt])

    def _decline(self, attempt: AttemptState, error: TrajectoryError | None) -> Mapping[str, str]:
        """The fields to requeue a job with if another worker may have the memory for it; {} otherwise."""
        if self._declines is None or error is None or error.code != "out_of_memory":
            return {}
        return self._declines.decline(attempt.record)

    def _write_pending(self, due: Sequence[AttemptState]) -> None:
        """Write the pending updates of some jobs."""
        updates = [attempt.take_pending_update() for attempt in due]
        for attempt, update, result in zip(due, updates, self._write(updates), strict=True):
            if update.status is not None or not result:
                self._end(attempt, update, result)
            else:
                attempt.apply_result(result)

    def _is_flush_due(self) -> bool:
        """Whether this turn is written for unwatched jobs, too."""
        if time.monotonic() - self._flushed_at < FLUSH_SECONDS:
            return False
        self._flushed_at = time.monotonic()
        return True

    def _fail(self, attempt: AttemptState, code: str, message: str) -> None:
        if attempt.over:
            return
        update = attempt.take_pending_update()
        update.end("failed", {"code": code, "message": message})
        (result,) = self._write([update])
        self._end(attempt, update, result)

    def _fail_all(self, attempts: list[AttemptState], error: Exception) -> None:
        """Fail the jobs of a turn that a defect of ours has hit: none may stay without an end."""
        for attempt in attempts:
            try:
                self._fail(attempt, "internal_error", f"{type(error).__name__}: {error}")
            except Exception:
                log.exception("failure not written; the job is given back", extra=attempt.log_fields)
                with contextlib.suppress(Exception):
                    self._end(attempt)  # or its lease would be renewed forever

    def _requeue(self, attempt: AttemptState, fields: Mapping[str, str] = NO_FIELDS) -> None:
        if attempt.over:
            return
        update = attempt.take_pending_update()
        update.fields |= {"step": attempt.progress.step, "evaluations": attempt.progress.evaluations, **fields}
        attempt.save(update)
        update.requeue()
        (result,) = self._write([update])
        self._end(attempt, update, result)

    def _give_back(self, attempt: AttemptState, has_wrong_results: bool) -> None:
        if attempt.over:
            return
        update = attempt.take_pending_update()
        (update.start_over if has_wrong_results else update.requeue)()
        (result,) = self._write([update])
        self._end(attempt, update, result)

    def _abandon_attempt(self, attempt: AttemptState) -> None:
        if not attempt.over:
            self._end(attempt)

    def _end(self, attempt: AttemptState, update: JobUpdate | None = None, result: UpdateResult = REFUSED) -> None:
        attempt.over = True
        self._on_over(attempt, update if result else None)

    def _write(self, updates: list[JobUpdate]) -> list[UpdateResult]:
        """Retry until Redis answers; the store applies a repeated update once.

        While Redis has no memory left, or the place for results is full, frames and resume points are dropped; the rest
        is written (`JobUpdate.shed`).
        """
        if not updates:
            return []
        waiting = False
        while not self._abandon.is_set():
            try:
                return self._store.write_all(updates)
            except StoreUnavailable as error:
                if isinstance(error, StoreFull) and not all(update.essential for update in updates):
                    log.warning("frames dropped: the store is full", extra={"reason": str(error)})
                    for update in updates:
                        update.shed()
                    continue
                if not waiting:
                    log.warning("updates wait for the store", extra={"reason": str(error)})
                waiting = True
                self._abandon.wait(RETRY_SECONDS)
        return [REFUSED] * len(updates)


def _by_job(turn: Turn) -> Results:
    """The results of a turn for each job: its images that advanced, and the first failure."""
    errors = {trajectory.job: error for trajectory, error in reversed(turn.failed)}
    items: dict[str, list[Advanced]] = {job: [] for job in errors}
    for item in turn.advanced:
        items.setdefault(item.trajectory.job, []).append(item)
    return {job: (advanced, errors.get(job)) for job, advanced in items.items()}
