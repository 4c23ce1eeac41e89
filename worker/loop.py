"""The engine's thread: take jobs in, turn, publish, until told to stop; then finish or give back what runs.

It knows no queue: whoever makes it says how a job is taken off one, and gets it back through its `Delivery`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from denoised.jobs.deadline import REDIS_ERRORS
from denoised.jobs.record import Counters, Status
from denoised.jobs.store import Store
from denoised.jobs.update import JobUpdate
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.attempt import AttemptState
from denoised.worker.delivery.draining import to_give_back
from denoised.worker.delivery.job_fetcher import Capacity, FetchedJob, JobFetcher
from denoised.worker.delivery.leases import Delivery, Lease, Leases
from denoised.worker.delivery.publisher import Publisher
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.speed import Speed
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.engine.turn import Turn

log = logging.getLogger("denoised.worker")

IDLE_SECONDS = 1.0  # how long an idle worker sleeps when nobody wakes it
TAKE_SECONDS = 1.0  # for a job that is just being taken when we are told to stop
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
        models: Mapping[str, ServedModel],
        store: Store,
        settings: WorkerSettings,
        name: str,
        take: Callable[[str], Delivery | None],
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
        self._woken = threading.Event()
        self.taker = JobFetcher(store, models, take, name, self._woken.set, self.stopping)
        self._next: tuple[Lease, Sequence[Trajectory]] | None = None  # who begins when everybody else has left
        self._end: float | None = None  # since somebody told us to stop

    def wake(self, model: str | None = None) -> None:
        """There may be new work, for one model or for any."""
        self.taker.wake(model)

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
            self.taker.start()
            while not self.stopping.is_set():
                self._admit_arrivals()
                if not self._turn():
                    self.load = (0, 0)
                    self._woken.wait(IDLE_SECONDS)
                    self._woken.clear()
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
        self._clear()
        started = time.monotonic()
        turn = self.engine.step()
        if not turn.rows and not turn.failed:
            self._turn_ended = None
            return False
        ended = time.monotonic()
        if turn.advanced:
            # What the loop does between two turns is part of what the second takes. Those beside it had, or will have,
            # their own: a turn of all is as long as their parts together.
            model, seconds = turn.advanced[0].trajectory.model, ended - (self._turn_ended or started)
            self.speed.add(model, turn.batch, seconds * turn.batch / turn.rows)
        self._turn_ended = ended
        self.counters.evaluations += turn.rows
        self.counters.turns += 1
        self.counters.turn_seconds += turn.seconds
        self.counters.images += len(turn.advanced) + len(turn.failed)
        self.counters.lanes += turn.slots
        leases = self.leases.of(sorted(_jobs(turn)))
        for lease in leases:
            lease.spent += turn.seconds
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

    def _clear(self) -> None:
        """Jobs whose worker was lost are in no hurry any more once they get on: see `AttemptState`."""
        if self.engine.batch.urgent:
            self.publisher.settle()
            self.engine.batch.urgent = {lease.active.id for lease in self.leases.all() if lease.active.accused}

    # New jobs

    def _admit_arrivals(self) -> None:
        """Take in what the taker has brought, and tell it what there is room for then."""
        for arrival in self.taker.arrivals():
            self._admit(arrival)
        self.taker.offer(self._rooms())

    def _rooms(self) -> dict[str, Capacity]:
        """None, while somebody is to be alone."""
        if any(lease.active.apart for lease in self.leases.all()):
            return {}
        batch = self.engine.batch
        return {model: Capacity(batch.free_slots(model), batch.has_room(model)) for model in self.models}

    def _admit(self, arrival: FetchedJob) -> None:
        record, hold = arrival.record, arrival.hold
        model = self.models[hold.model]
        active = AttemptState.begun(record, model, model.card.numerics)
        lease = Lease(hold, active, record.created_at)
        before = self.leases.add(lease)
        if before is not None:
            # Our lease ran out while we were slow, and RQ gave us our own job again.
            before.active.over = True
            self._end_hold(before)
        self.engine.batch.evict(record.id)
        if arrival.unservable is not None:
            self.publisher.fail(active, "unservable", arrival.unservable)
            return
        newcomers = arrival.trajectories
        active.resume(record, newcomers)
        if active.accused:
            self.engine.batch.urgent.add(record.id)
        if any(other.active.apart for other in self.leases.all() if other is not lease):
            self._give_back(lease)  # it came when somebody was just to be alone
            return
        if active.apart:
            self._clear_for(lease, newcomers)
        else:
            self.engine.batch.admit(newcomers)
        self.counters.jobs += 1
        self.counters.queue_seconds += max(0.0, time.time() - record.created_at)
        facts = {"model": record.request.model, "images": record.request.n, "attempt": active.attempt}
        log.info("job started", extra={**active.named, **facts})

    def _end_hold(self, lease: Lease) -> None:
        try:
            lease.hold.end()
        except REDIS_ERRORS as error:
            _warn("RQ was not told", lease.active, error)  # its lease has run out anyway

    # A job that is to be alone, since its worker was lost whenever it ran

    def _clear_for(self, lease: Lease, newcomers: Sequence[Trajectory]) -> None:
        """Give everybody else back, unharmed; then this one begins."""
        log.warning("job runs apart", extra=lease.active.named)
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
            _warn("job does not begin yet", lease.active, error)
        return False

    # The end

    def _drain(self) -> None:
        """Give back what would take long, finish the rest."""
        self.taker.join(TAKE_SECONDS)
        for arrival in self.taker.arrivals():
            self._admit(arrival)
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

    def _release(self, active: AttemptState, last: JobUpdate | None) -> None:
        """A job is over for this worker: end or return RQ's side of it. last: see `Publisher`."""
        lease = self.leases.remove(active)
        if lease is None:
            return
        try:
            if last is None:
                self._find_out(lease)
            elif last.status == "queued":
                log.info("job given back", extra={**active.named, "step": active.step})
                lease.hold.requeue()
            else:
                lease.hold.forget()
                _tell(lease, last.status, last.error, active.evaluations)
        except REDIS_ERRORS as error:
            # Its lease runs out; whoever takes it up then finds the job over, or does it again.
            _warn("RQ was not told", active, error)
        finally:
            self._woken.set()

    def _find_out(self, lease: Lease) -> None:
        """What became of a job that another's write took from us."""
        record = self._store.job(lease.active.id)
        if record is None or record.terminal:
            lease.hold.forget()
            if record is not None:
                _tell(lease, record.status, record.error, record.evaluations)
        elif record.attempt == lease.active.attempt:
            lease.hold.requeue()
        else:
            lease.hold.end()  # another attempt has it, and RQ's job with it


def _warn(event: str, active: AttemptState, error: Exception) -> None:
    log.warning(event, extra={**active.named, "reason": str(error)})


def _jobs(turn: Turn) -> set[str]:
    return {item.trajectory.job for item in turn.advanced} | {trajectory.job for trajectory, _ in turn.failed}


def _tell(lease: Lease, status: Status | None, error: Mapping[str, str] | None, evaluations: int) -> None:
    """The log's line on a job that is over."""
    facts = {"status": status, "code": (error or {}).get("code"), "evaluations": evaluations, "spent": lease.spent}
    log.info("job over", extra={**lease.active.named, **facts})
