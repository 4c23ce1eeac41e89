"""The engine's thread: take jobs, turn, publish, until told to stop; then finish or give back what runs.

It knows no queue: whoever makes it says how a job is taken off one, and gets it back through its `Hold`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from model.denoiser import PixelModel
from model.errors import ModelError
from worker.draining import to_give_back
from worker.engine import Engine, Turn
from worker.errors import ResumeError, StoreUnavailable
from worker.job import Counters, JobRecord
from worker.leases import Hold, Lease, Leases
from worker.patience import AWAY
from worker.publisher import ActiveJob, Publisher
from worker.resume import Saved, from_bytes
from worker.speed import Speed
from worker.store import Store
from worker.trajectory import Trajectory, trajectories
from worker.writes import Write

log = logging.getLogger("denoised.worker")

REDIS_ERRORS = (*AWAY, StoreUnavailable)
IDLE_SECONDS = 1.0  # how long an idle worker sleeps when nobody wakes it
ASK_SECONDS = 0.25  # how long a busy one does not ask queues that were empty, unless somebody wakes it
FINISH_SECONDS = 4.0  # what is done sooner than this is finished on SIGTERM, the rest given back
FLUSH_SECONDS = 3.0  # then, for what is still to be written
STOP_SECONDS = 8.0  # for all of it, also when Redis keeps us waiting


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker behaves. Seconds, unless said otherwise.

    max_batch: images in one evaluation; job_timeout: of the evaluations that a job takes part in.
    """

    max_batch: int = 16
    lease: float = 10.0
    job_timeout: float = 600.0


class Loop:
    """Models and their running batch; one thread runs it, the others may `wake`, `stop` and `cancel`.

    name: the worker's; take(model): the next job of that model's queue, None when it is empty.
    """

    def __init__(
        self,
        models: Mapping[str, PixelModel],
        store: Store,
        settings: WorkerSettings,
        name: str,
        take: Callable[[str], Hold | None],
        speed: Speed,
    ) -> None:
        self.models = models
        self.settings = settings
        self.engine = Engine(models, settings.max_batch)
        self.publisher = Publisher(store, self._release)
        self.leases = Leases()
        self.speed = speed
        self._turn_ended: float | None = None  # None while nobody is here
        self.counters = Counters()
        self.load = (0, 0)  # trajectories, evaluations to go; for others, who may not look into the batch
        self.stopping = threading.Event()
        self._store = store
        self._name = name
        self._take = take
        self._woken = threading.Event()
        self._more = True  # whether there may be jobs in the queues
        self._ask_after = 0.0  # when Redis was away
        self._ask_anyway = 0.0
        self._taken: Hold | None = None  # off its queue, but not begun: Redis went away in between
        self._next: tuple[Lease, list[Trajectory]] | None = None  # who begins when everybody else has left
        self._end: float | None = None  # since somebody told us to stop

    def wake(self) -> None:
        """There may be new work."""
        self._woken.set()

    def stop(self) -> None:
        """Take no more jobs."""
        if self._end is None:
            self._end = time.monotonic() + STOP_SECONDS
            self.publisher.wait_no_longer_than(self._end - FLUSH_SECONDS)
        self.stopping.set()
        self._woken.set()

    def cancel(self, job: str) -> None:
        """Have a job leave the batch before the next evaluation, if it is here."""
        self.leases.mark(job)
        self._woken.set()

    def run(self) -> bool:
        """Until `stop`. Returns whether everything was written in the end."""
        try:
            while not self.stopping.is_set():
                self._take_jobs()
                if not self._turn():
                    self.load = (0, 0)
                    self._woken.wait(IDLE_SECONDS)
            self._drain()
        finally:
            left = FLUSH_SECONDS if self._end is None else self._end - time.monotonic()
            written = self.publisher.close(min(FLUSH_SECONDS, max(0.0, left)))
        return written

    # Turns

    def _turn(self) -> bool:
        """One evaluation for everybody who may go on. False when nobody is here."""
        self._evict()
        self._begin_apart()
        started = time.monotonic()
        turn = self.engine.step()
        if not turn.rows and not turn.failed:
            self._turn_ended = None
            return False
        ended = time.monotonic()
        seconds = ended - started
        if turn.advanced:
            # What the loop does between two turns is part of what the second takes.
            model = turn.advanced[0].trajectory.model
            self.speed.add(model, turn.rows, ended - (self._turn_ended or started))
        self._turn_ended = ended
        self.counters.evaluations += turn.rows
        self.counters.turns += 1
        self.counters.turn_seconds += seconds
        leases = self.leases.of(sorted(_jobs(turn)))
        for lease in leases:
            lease.spent += seconds
        self.publisher.publish(turn, [lease.active for lease in leases])
        batch = self.engine.batch
        self.load = (len(batch), batch.pending_evaluations)
        return True

    def _evict(self) -> None:
        """Remove what was canceled, what another attempt has taken, and what is late."""
        for job in self.leases.take_gone():
            self.engine.batch.evict(job)
            lease = self.leases.get(job)
            if lease is not None:
                self.publisher.let_go(lease.active)
        for lease in self.leases.all():
            if lease.spent > self.settings.job_timeout and self.engine.batch.evict(lease.active.id):
                limit = f"the job was not done within {self.settings.job_timeout:g} s"
                self.publisher.fail(lease.active, "timeout", limit)

    # New jobs

    def _take_jobs(self) -> None:
        """Fill the batch from the queues; those that were empty are not asked at each turn."""
        now = time.monotonic()
        if self._woken.is_set() or now >= self._ask_anyway:
            self._woken.clear()
            self._more = True
        if not self._more or now < self._ask_after:
            return
        try:
            if self._taken is not None:
                self._begin(self._taken)
            filled = [self._fill_from(model) for model in self.models]
            self._more = any(filled)
            self._ask_anyway = now + ASK_SECONDS
        except REDIS_ERRORS as error:
            log.warning("no new jobs: %s", error)
            self._ask_after = time.monotonic() + IDLE_SECONDS  # what runs goes on meanwhile

    def _fill_from(self, model: str) -> bool:
        """Take jobs while there are lanes. False when the queue is empty.

        When there are none, one job a turn as long as there is room: workers with free lanes get the others.
        """
        batch = self.engine.batch
        if not batch.has_lane(model):
            return not batch.has_room(model) or self._take_job(model)
        while batch.has_lane(model) and not self.stopping.is_set():
            if not self._take_job(model):
                return False
        return True

    def _take_job(self, model: str) -> bool:
        """Take one job off a queue. False when it is empty, or when somebody here is to be alone."""
        if any(lease.active.apart for lease in self.leases.all()):
            return False
        hold = self._take(model)
        if hold is None:
            return False
        self._begin(hold)
        return True

    def _begin(self, hold: Hold) -> None:
        """Begin an attempt at a job, where another was saved if there was one."""
        self._taken = hold  # until all of it is known: nothing of what follows is lost when Redis goes away
        model = self.models[hold.model]
        attempt = self._store.start(hold.job, self._name, model.card.numerics, hold.execution)
        record = self._record(hold.job) if attempt else None
        if record is None:
            hold.forget()
        else:
            self._admit(replace(record, attempt=attempt), model, hold, self._store.resume_point(hold.job))
        self._taken = None

    def _record(self, job_id: str) -> JobRecord | None:
        """The job; None when it is gone, or not to be read (a newer front end's, say): that ends it."""
        try:
            return self._store.job(job_id)
        except (KeyError, TypeError, ValueError) as error:
            write = Write(job_id)
            write.end("failed", {"code": "unservable", "message": f"this worker cannot read the request: {error}"})
            self._store.write(write)
            return None

    def _admit(self, record: JobRecord, model: PixelModel, hold: Hold, resume_point: bytes | None) -> None:
        active = ActiveJob.begun(record, model, model.card.numerics)
        lease = Lease(hold, active, record.created_at)
        before = self.leases.add(lease)
        if before is not None:
            # Our lease ran out while we were slow, and RQ gave us our own job again.
            before.active.over = True
            before.hold.end()
        self.engine.batch.evict(record.id)
        try:
            newcomers = _trajectories(record, model, resume_point)
        except ModelError as error:
            self.publisher.fail(active, "unservable", str(error))
            return
        active.resume(record, newcomers)
        if active.apart:
            self._clear_for(lease, newcomers)
        else:
            self.engine.batch.admit(newcomers)
        self.counters.jobs += 1
        self.counters.queue_seconds += max(0.0, time.time() - record.created_at)
        facts = {"model": record.request.model, "images": record.request.n, "attempt": active.attempt}
        log.info("job started", extra={"job": record.id, "request_id": record.request_id, **facts})

    # A job that is to be alone, since its worker was lost whenever it ran

    def _clear_for(self, lease: Lease, newcomers: list[Trajectory]) -> None:
        """Give everybody else back, unharmed; then this one begins."""
        log.warning("job %s runs apart: its worker was lost each time it ran", lease.active.id)
        for other in self.leases.all():
            if other is not lease:
                self._give_back(other)
        self._next = lease, newcomers

    def _begin_apart(self) -> None:
        if self._next is None:
            return
        lease, newcomers = self._next
        held = self.leases.all()
        if lease not in held:
            self._next = None  # canceled meanwhile
        elif len(held) == 1 and self._may_enter(lease):
            self._next = None
            self.engine.batch.admit(newcomers)

    def _may_enter(self, lease: Lease) -> bool:
        """Say that it begins now. Until then the loss of this worker would not be its doing."""
        try:
            if self._store.enter(lease.active.id, lease.active.attempt):
                return True
            self.leases.mark(lease.active.id)
        except REDIS_ERRORS as error:
            log.warning("job %s does not begin yet: %s", lease.active.id, error)
        return False

    # The end

    def _drain(self) -> None:
        """Give back what would take long, finish the rest."""
        pending = self.engine.batch.pending_by_job()
        long = to_give_back(pending, FINISH_SECONDS * (self.speed.per_second or 0.0))
        for lease in self.leases.all():
            if lease.active.id in long:
                self._give_back(lease)
        self._next = None
        end = time.monotonic() + FINISH_SECONDS
        if self._end is not None:
            end = min(end, self._end - FLUSH_SECONDS)
        while time.monotonic() < end and self._turn():
            pass
        for lease in self.leases.all():
            self._give_back(lease)  # in vain where its end is just being written

    def _give_back(self, lease: Lease) -> None:
        self.engine.batch.evict(lease.active.id)
        self.publisher.give_back(lease.active)

    # The publisher's thread

    def _release(self, active: ActiveJob, given_back: bool) -> None:
        """A job is over for this worker: end or return RQ's side of it."""
        lease = self.leases.remove(active)
        if lease is None:
            return
        try:
            if given_back:
                log.info("job %s is given back at step %d", active.id, active.step)
                lease.hold.requeue()
                return
            record = self._store.job(active.id)
            if record is None or record.terminal:
                lease.hold.forget()
                _tell(record, lease)
            elif record.attempt == active.attempt:
                lease.hold.requeue()
            else:
                lease.hold.end()  # another attempt has it, and RQ's job with it
        except REDIS_ERRORS as error:
            # Its lease runs out; whoever takes it up then finds the job over, or does it again.
            log.warning("job %s: RQ was not told (%s)", active.id, error)
        finally:
            self._woken.set()


def _jobs(turn: Turn) -> set[str]:
    return {item.trajectory.job for item in turn.advanced} | {trajectory.job for trajectory, _ in turn.failed}


def _tell(record: JobRecord | None, lease: Lease) -> None:
    """The log's line on a job that is over."""
    if record is not None:
        facts = {"status": record.status, "code": (record.error or {}).get("code"), "evaluations": record.evaluations}
        log.info("job over", extra={"job": record.id, "request_id": record.request_id, **facts, "spent": lease.spent})


def _trajectories(record: JobRecord, model: PixelModel, resume_point: bytes | None) -> list[Trajectory]:
    """Those of a job, where they were saved; from their x_T when that cannot be used."""
    try:
        saved: Mapping[int, Saved] = from_bytes(resume_point) if resume_point is not None else {}
        return trajectories(record, model, saved)
    except ResumeError as error:
        log.warning("job %s begins anew: %s", record.id, error)
        return trajectories(record, model)
