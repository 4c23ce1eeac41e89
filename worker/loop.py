"""The engine's thread: runs turns, publishes their results; when it stops, it finishes or requeues jobs.

It knows no queue: the caller passes `take`, and each job goes back through its `Delivery`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from denoised.jobs.store.store import Store
from denoised.jobs.worker_report import Counters
from denoised.model.serving.protocol import ServedModel
from denoised.worker.batch_admission import BatchAdmission
from denoised.worker.delivery.capacity import Capacity, Take
from denoised.worker.delivery.draining import jobs_to_requeue
from denoised.worker.delivery.job_fetcher import JobFetcher
from denoised.worker.delivery.leases import Leases
from denoised.worker.delivery.memory_declines import MemoryDeclines
from denoised.worker.delivery.publisher import Publisher
from denoised.worker.delivery.settlement import Settlement
from denoised.worker.device_health import DeviceHealth
from denoised.worker.engine.canary import Canary
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.speed import Speed
from denoised.worker.engine.turn import Turn
from denoised.worker.errors import DeviceError
from denoised.worker.models.live_models import LiveModels
from denoised.worker.models.model_changes import ModelChanges
from denoised.worker.models.ready_model import ReadyModel
from denoised.worker.quarantine import Quarantine
from denoised.worker.settings import WorkerSettings

log = logging.getLogger("denoised.worker")

IDLE_SECONDS = 1.0  # how long an idle worker sleeps unless it is woken
FETCH_SECONDS = 1.0  # for a job that is being fetched when the worker is asked to stop
FINISH_SECONDS = 4.0  # after SIGTERM, jobs that are done sooner are finished, the others requeued
FLUSH_SECONDS = 3.0  # then, for the updates that are not written yet
SAVE_TURN_SECONDS = 0.5  # how long a turn waits until the last one of a recovering job is saved
STOP_SECONDS = 8.0  # for all of it, even if Redis does not answer


class Loop:
    """Models and their running batch. One thread runs it; others may call `wake`, `stop` and `cancel`.

    name: the worker's.
    take: see `JobFetcher`.
    canaries: of the models; without any, the device is not checked.
    load: (trajectories, pending evaluations), for other threads, which must not touch the batch.
    shared: the models that other live workers serve, too; another thread sets it.
    last_used: when a job of a model came last, by `time.monotonic`.
    failure: why the device cannot be used any more, which ends `run`; None while it is sound.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        store: Store,
        settings: WorkerSettings,
        name: str,
        take: Take,
        speed: Speed,
        canaries: Sequence[Canary] = (),
    ) -> None:
        self.models = LiveModels(models)
        self.settings = settings
        self._woken = threading.Event()
        self.changes = ModelChanges(self._woken.set)
        self._device = DeviceHealth(canaries, self._woken.set)
        self.engine = Engine(
            self.models,
            settings.max_batch,
            slots=settings.slots,
            memory_bytes=settings.memory_bytes,
            check_device=self._device.check,
        )
        self.leases = Leases()
        self.speed = speed
        self.last_used: dict[str, float] = {}
        self.counters = Counters()
        self.load = (0, 0)
        self.shared: frozenset[str] = frozenset()
        self.stopping = threading.Event()
        device, declines = self._device, MemoryDeclines(name, lambda: self.shared)
        self._settlement = Settlement(store, self.leases, self._woken.set, device.record_success)
        self.publisher = Publisher(store, self._settlement.settle, speed.add_decoding, device=device, declines=declines)
        self._fetcher = JobFetcher(
            store, self.models, take, name, self._woken.set, self.stopping, device=device, declines=declines
        )
        self._admission = BatchAdmission(
            self.models,
            self.engine,
            self.leases,
            self.publisher,
            self._settlement,
            Quarantine(store, self.leases, name),
        )
        self._turn_ended: float | None = None  # None while the batch is empty
        self._deadline: float | None = None  # set by `stop`
        self.failure: DeviceError | None = None

    def wake(self, model: str | None = None) -> None:
        """There may be new jobs, for one model or, without a name, for any."""
        self._fetcher.wake(model)

    def stop(self) -> None:
        """Fetch no more jobs."""
        if self._deadline is None:
            self._deadline = time.monotonic() + STOP_SECONDS
            self.publisher.set_deadline(self._deadline - FLUSH_SECONDS)
        self.stopping.set()
        self._woken.set()

    def cancel(self, job: str) -> None:
        """Have a job leave the batch before the next evaluation, if it is here."""
        self.leases.mark_leaving(job)
        self._woken.set()

    def run(self) -> bool:
        """Run until `stop`. Returns whether everything was written in the end."""
        try:
            self._fetcher.start()
            while not self.stopping.is_set():
                self._admit_fetched()
                self._fetcher.set_capacity(self._capacity())
                self.changes.step(self._is_held, self.models, self._apply)
                if not self._turn():
                    self.load = (self._admission.undecoded(*self.models), 0)
                    self._woken.wait(IDLE_SECONDS)
                    self._woken.clear()
            self._drain()
        except DeviceError as error:
            self.failure = error
            self._give_back_all(error)
        finally:
            self._device.close()
            self.changes.close()
            left = FLUSH_SECONDS if self._deadline is None else self._deadline - time.monotonic()
            written = self.publisher.close(min(FLUSH_SECONDS, max(0.0, left)))
        return written

    # Turns

    def _turn(self) -> bool:
        """One evaluation of the batch. False when there is nothing to evaluate."""
        self._device.answer()
        self._evict()
        self._save_recovering()
        self._admission.begin_quarantined()
        started = time.monotonic()
        turn = self.engine.step()
        if not turn.rows and not turn.failed:
            self._turn_ended = None
            return False
        self._device.answer(trajectory.job for trajectory, _ in turn.failed)
        self._measure(turn, started)
        leases = self.leases.of(sorted(_jobs(turn)))
        for lease in leases:
            lease.spent += turn.seconds
        self.publisher.publish(turn, [lease.attempt for lease in leases])
        batch = self.engine.batch
        self.load = (len(batch) + self._admission.undecoded(*self.models), batch.pending_evaluations)
        return True

    def _measure(self, turn: Turn, started: float) -> None:
        """Add a turn to speed and counters."""
        ended = time.monotonic()
        if turn.advanced:
            # From the end of the last turn on, since the loop's own work between two turns takes time, too. Of two
            # turns in flight each has its share of the rows, so the time is scaled up to all of them.
            model, seconds = turn.advanced[0].trajectory.model, ended - (self._turn_ended or started)
            self.speed.add(model, turn.batch, seconds * turn.batch / turn.rows)
        self._turn_ended = ended
        self.counters.evaluations += turn.rows
        self.counters.turns += 1
        self.counters.turn_seconds += turn.seconds
        self.counters.images += len(turn.advanced) + len(turn.failed)
        self.counters.slots += turn.slots

    def _evict(self) -> None:
        """Evict jobs that were canceled, were taken over by another attempt, or have run too long."""
        for job in self.leases.take_leaving():
            self.engine.batch.evict(job)
            lease = self.leases.get(job)
            if lease is not None:
                self.publisher.abandon(lease.attempt)
        for lease in self.leases.all():
            if lease.seconds > self.settings.job_timeout and not lease.overdue and lease.attempt.unfinished:
                lease.overdue = True
                self.engine.batch.evict(lease.attempt.id)
                limit = f"the job was not done within {self.settings.job_timeout:g} s"
                self.publisher.fail(lease.attempt, "timeout", limit)

    def _save_recovering(self) -> None:
        """Wait until the last turn of recovering jobs is saved.

        If the next turn kills this worker, too, the job has come as far as its resume point says: the next attempt
        repeats nothing, which would look like progress.
        """
        if any(lease.attempt.recovering for lease in self.leases.all()):
            self.publisher.flush(SAVE_TURN_SECONDS)

    # New jobs

    def _admit_fetched(self) -> None:
        for job in self._fetcher.take_fetched():
            self.last_used[job.delivery.model] = time.monotonic()
            if self._admission.admit(job):
                self.counters.jobs += 1
                self.counters.queue_seconds += job.started.waited

    def _capacity(self) -> dict[str, Capacity]:
        """What there is capacity for; nothing while a fetched job had no memory to start next to those that run."""
        if not self.leases.all():
            self._fetcher.short_of_memory = False
        if self._fetcher.short_of_memory:
            return {}
        capacity = self._admission.capacity(self.shared)
        return {model: each for model, each in capacity.items() if model not in self.changes.retired}

    def _is_held(self, model: str) -> bool:
        """Whether a job of a model is here, or on its way."""
        return self._fetcher.holds(model) or any(lease.delivery.model == model for lease in self.leases.all())

    def _apply(self, name: str, ready: ReadyModel | None) -> None:
        self._device.replace(name, None if ready is None else ready.canary)
        self.models.put(name, None if ready is None else ready.model)
        self.engine.replace_model(name, self.settings.max_batch if ready is None else ready.slots)

    # The end

    def _drain(self) -> None:
        """Requeue the jobs that would take long, finish the others."""
        self._fetcher.join(FETCH_SECONDS)
        self._admit_fetched()
        pending = self.engine.batch.pending_by_job()
        long = jobs_to_requeue(pending, FINISH_SECONDS * (self.speed.per_second or 0.0))
        for lease in self.leases.all():
            if lease.attempt.id in long:
                self._admission.requeue(lease)
        self._admission.clear()
        end = time.monotonic() + FINISH_SECONDS
        if self._deadline is not None:
            end = min(end, self._deadline - FLUSH_SECONDS)
        while time.monotonic() < end and self._turn():
            pass
        self.publisher.finish_decoding(max(0.0, end - time.monotonic()))
        for lease in self.leases.all():
            self._admission.requeue(lease)  # without effect where the job's end is being written

    def _give_back_all(self, error: DeviceError) -> None:
        """Return every job to its queue. Their tensors cannot be read any more."""
        log.error("the device has failed; all jobs go back to the queue", extra={"reason": str(error)})
        self.stop()
        self._fetcher.join(FETCH_SECONDS)
        for job in self._fetcher.take_fetched():
            self._admission.hold(job)
        for lease in self.leases.all():
            self.publisher.give_back(lease.attempt, has_wrong_results=error.has_wrong_results)


def _jobs(turn: Turn) -> set[str]:
    return {item.trajectory.job for item in turn.advanced} | {trajectory.job for trajectory, _ in turn.failed}
