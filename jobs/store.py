"""Jobs, events, pictures and workers in Redis (`jobs.redis_keys` has where).

All state changes of a job run as one Lua script each (`jobs.scripts`), so that they happen once and whole:
a terminal status never changes, and a worker whose attempt is over writes nothing. Events
get `seq` inside the script, so it has no gaps.
"""

from __future__ import annotations

import enum
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import redis
from redis.client import Pipeline
from redis.commands.core import Script

from denoised.jobs import redis_keys as keys
from denoised.jobs.deadline import reachable
from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.memory import Memory
from denoised.jobs.record import JobRecord, WorkerReport
from denoised.jobs.scripts import COLLECT, COUNT, ENTER, START, WATCH, WRITE
from denoised.jobs.update import JobUpdate, ending, event_json

Fields = Mapping[bytes, bytes]
LISTED_SECONDS = 86_400  # that a job may have waited and run, and still be listed for as long as its results are kept
SILENT_SECONDS = 0.5
COUNTED_SECONDS = 86_400  # longer than a worker may be out of reach and come back


@dataclass(frozen=True)
class Queue:
    """The keys of a model's queue as RQ names them: jobs that wait, that a worker is just taking, and the leases of
    those taken; job_prefix: of RQ's hashes."""

    model: str
    waiting: str
    between: str
    started: str
    job_prefix: str


@dataclass(frozen=True, order=True)
class Place:
    """Where a job stands in the list of its caller's jobs; of two made at one moment the id decides."""

    created_at: float
    id: str


@dataclass(frozen=True)
class StartedAttempt:
    """A job whose attempt has begun, and where an earlier one was saved."""

    record: JobRecord
    resume_point: bytes | None


@dataclass(frozen=True)
class Outcome:
    """A job as it stands, and its pictures, by index, as far as they were asked for and are made."""

    record: JobRecord
    pictures: Mapping[int, bytes] = field(default_factory=dict)


class UpdateResult(enum.IntEnum):
    """What became of a write. REFUSED: the job is over, or is another attempt's by now; WATCHED: it was applied, and
    somebody follows the job's events."""

    REFUSED = 0
    APPLIED = 1
    WATCHED = 2


class Store:
    """Synchronous, thread-safe; used by worker threads and from the front end's thread pool.

    Raises:
        StoreUnavailable: from every method, when Redis does not answer in time.
    """

    def __init__(self, client: redis.Redis, result_ttl: int = 86_400) -> None:
        self.client = client
        self.result_ttl = result_ttl
        self._start = client.register_script(START)
        self._enter = client.register_script(ENTER)
        self._write = client.register_script(WRITE)
        self._watch = client.register_script(WATCH)
        self._collect = client.register_script(COLLECT)
        self._count = client.register_script(COUNT)
        self._silent_until = 0.0

    # Jobs

    def reserve(self, job_id: str, pipeline: Pipeline) -> bool:
        """Begin a transaction that holds only while there is no such job. False when there is one."""
        with self.reachable():
            pipeline.watch(keys.job(job_id))
        with self.reachable():
            free = not pipeline.exists(keys.job(job_id))
        pipeline.multi()
        return bool(free)

    def create(self, job: JobRecord, queued_event: Mapping[str, Any], pipeline: Pipeline) -> None:
        """Add a new job to a transaction, with its first event."""
        fields: dict[Any, Any] = {**job.to_fields(), "seq": 1, "writes": 0}
        pipeline.hset(keys.job(job.id), mapping=fields)
        entry = {"a": job.attempt, "e": event_json("queued", queued_event)}
        pipeline.xadd(keys.events(job.id), entry, id="1-0")  # type: ignore[arg-type]
        listed = self.result_ttl + LISTED_SECONDS
        pipeline.zadd(keys.jobs(job.owner), {job.id: job.created_at})
        pipeline.zremrangebyscore(keys.jobs(job.owner), "-inf", job.created_at - listed)
        pipeline.expire(keys.jobs(job.owner), listed)
        pipeline.hincrby(keys.JOB_TOTALS, f"accepted:{job.request.model}", 1)
        pipeline.publish(keys.model_channel(job.request.model), job.id)

    def job(self, job_id: str) -> JobRecord | None:
        """The record, None when there is none (any more)."""
        with self.reachable():
            return _record(cast("Fields", self.client.hgetall(keys.job(job_id))))

    def outcome(self, job_id: str, pictures: int = 0) -> Outcome | None:
        """The record and the first so many pictures, in one round trip; None when there is no such job (any more)."""
        with self.reachable(), self.client.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.job(job_id))
            for index in range(pictures):
                pipe.get(keys.image(job_id, index))
            fields, *images = pipe.execute()
        record = _record(fields)
        made = {index: data for index, data in enumerate(images) if data is not None}
        return Outcome(record, made) if record is not None else None

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Several records in one round trip."""
        with self.reachable(), self.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys.job(job_id))
            return [_record(fields) for fields in pipe.execute()]

    def going(self, job_ids: Sequence[str]) -> dict[str, int]:
        """How many evaluations were made of those of some jobs that are there and not over."""
        with self.reachable(), self.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(keys.job(job_id), "status", "evaluations")
            replies = cast("list[list[bytes | None]]", pipe.execute())
        states = zip(job_ids, replies, strict=True)
        return {job_id: int(done or 0) for job_id, (status, done) in states if status in (b"queued", b"running")}

    def jobs(self, owner: str, limit: int, after: Place | None = None) -> list[JobRecord]:
        """A caller's jobs, newest first, those that come after a place; forgets the ones that expired."""
        found: list[JobRecord] = []
        while len(found) < limit and (batch := self._listed(owner, limit, after)):
            records = self.records([place.id for place in batch])
            gone = [place.id for place, record in zip(batch, records, strict=True) if record is None]
            if gone:
                with self.reachable():
                    self.client.zrem(keys.jobs(owner), *gone)
            found += [record for record in records if record is not None]
            after = batch[-1]
        return found[:limit]

    def _listed(self, owner: str, count: int, after: Place | None) -> list[Place]:
        """Some of the places that come after one, newest first, [] when there are none."""
        highest, skipped = repr(after.created_at) if after is not None else "+inf", 0
        while True:
            with self.reachable():
                reply = self.client.zrevrangebyscore(keys.jobs(owner), highest, "-inf", skipped, count, withscores=True)
            places = [Place(score, job_id.decode()) for job_id, score in cast("list[tuple[bytes, float]]", reply)]
            later = [place for place in places if after is None or place < after]
            if later or not places:
                return later
            skipped += len(places)  # all of that moment, and before it in the list

    def begin(self, job_id: str, worker: str, numerics: str, execution: str | None = None) -> StartedAttempt | None:
        """Begin an attempt. None when the job is over: canceled, say, or one whose workers all died.

        It begins where the last attempt was saved if that had the same numerics, else anew. An `execution` begins
        once: asked again, because the reply was lost, it gets the same answer.

        Raises:
            RecordError: when an attempt has begun at what cannot be read.
        """
        names = [keys.job(job_id), keys.events(job_id)]
        started = event_json("started", {"worker": worker})
        execution = execution or uuid.uuid4().hex
        args = [repr(time.time()), worker, started, numerics, str(self.result_ttl), execution]

        def ask(pipe: Pipeline) -> None:
            pipe.evalsha(self._start.sha, len(names), *names, *args)
            pipe.hgetall(keys.job(job_id))
            pipe.get(keys.resume(job_id))

        with self.reachable():
            attempt, fields, resume_point = self._scripted(self._start, ask)
        try:
            record = _record(fields) if attempt else None
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"this worker cannot read the request: {error}") from error
        return StartedAttempt(replace(record, attempt=attempt), resume_point) if record is not None else None

    def enter(self, job_id: str, attempt: int) -> bool:
        """A job on its last chance is alone, and begins: from now on the loss of its worker counts. False when it is
        over, or another attempt's by now."""
        with self.reachable():
            return bool(self._enter(keys=[keys.job(job_id)], args=[attempt]))

    def write(self, write: JobUpdate) -> bool:
        """Apply one change. False when the job is over, or is another attempt's by now."""
        return self.write_all([write])[0] is not UpdateResult.REFUSED

    def write_all(self, writes: Sequence[JobUpdate]) -> list[UpdateResult]:
        """Apply changes of several jobs in one round trip, each atomic by itself."""

        def ask(pipe: Pipeline) -> None:
            for write in writes:
                given = write.keys()
                pipe.evalsha(self._write.sha, len(given), *given, *write.arguments(self.result_ttl))

        with self.reachable():
            return [UpdateResult(result) for result in self._scripted(self._write, ask)]

    def _scripted(self, script: Script, ask: Callable[[Pipeline], None]) -> list[Any]:
        """The replies in a round trip that has a script by its name alone: redis-py's own pipelines with scripts ask
        each time whether it is there. Where it is not, nothing that depends on it has happened."""
        with self.client.pipeline(transaction=False) as pipe:
            ask(pipe)
            try:
                return pipe.execute()
            except redis.exceptions.NoScriptError:  # a store that was started anew has forgotten it
                self.client.script_load(script.script)
            ask(pipe)
            return pipe.execute()

    def resume_point(self, job_id: str) -> bytes | None:
        """Where the job's images were saved, None when they were not."""
        with self.reachable():
            return cast("bytes | None", self.client.get(keys.resume(job_id)))

    def collect(self, queue: Queue, patience: float) -> int:
        """Put the jobs of dead workers back to the front of their queue, in the order in which they were accepted.

        patience: seconds that a job may stand between queue and worker. Returns how many there were.
        """
        names = [queue.waiting, queue.between, queue.started, keys.between(queue.model)]
        args = [repr(time.time()), repr(patience), queue.job_prefix, keys.job(""), keys.model_channel(queue.model)]
        with self.reachable():
            return int(self._collect(keys=names, args=args))

    def cancel(self, job_id: str) -> JobRecord | None:
        """End a job that is not over yet as canceled; returns what it then is, None if unknown."""
        record = self.job(job_id)
        if record is None or record.terminal:
            return record
        self.write(ending(record, "canceled"))
        with self.reachable():
            self.client.publish(keys.CANCELED_CHANNEL, job_id)
        return self.job(job_id)

    def image(self, job_id: str, index: int) -> bytes | None:
        """An encoded picture."""
        with self.reachable():
            return cast("bytes | None", self.client.get(keys.image(job_id, index)))

    # Events

    def watch(self, job_id: str) -> int:
        """Somebody follows the events of a job: its worker is to write each as soon as it happens. Returns the seq of
        the newest, 0 when there is no such job (any more)."""
        with self.reachable():
            return int(self._watch(keys=[keys.job(job_id)]))

    def events(self, job_id: str, after: int = 0, count: int = 500) -> list[dict[str, Any]]:
        """Stored events with seq > `after`, oldest first, at most `count`."""
        with self.reachable():
            reply = self.client.xrange(keys.events(job_id), min=f"{after + 1}-0", count=count)
            entries = cast("list[tuple[bytes, Fields]]", reply)
        return [event_from_entry(job_id, entry_id, fields) for entry_id, fields in entries]

    def last_seq(self, job_id: str) -> int:
        """The seq of the newest event, 0 when there is none."""
        with self.reachable():
            entries = cast("list[tuple[bytes, Fields]]", self.client.xrevrange(keys.events(job_id), count=1))
        return _seq(entries[0][0]) if entries else 0

    # Idempotency

    def claim(self, owner: str, key_hash: str, job_id: str, body_hash: str) -> tuple[str, str]:
        """Tie an Idempotency-Key to a job, once. Returns (job id, body hash) of whoever came first."""
        with self.reachable():
            won = self.client.set(keys.claim(owner, key_hash), f"{job_id} {body_hash}", nx=True, ex=86_400)
        held = None if won else self.claimed(owner, key_hash)
        return held or (job_id, body_hash)

    def claimed(self, owner: str, key_hash: str) -> tuple[str, str] | None:
        """(job id, body hash) that an Idempotency-Key is tied to, if it is."""
        with self.reachable():
            held = cast("bytes | None", self.client.get(keys.claim(owner, key_hash)))
        if held is None:
            return None
        job_id, _, body_hash = held.decode().partition(" ")
        return job_id, body_hash

    # Workers

    def report(self, report: WorkerReport, ttl: float) -> None:
        """Publish that a worker lives and what it serves."""
        with self.reachable(), self.client.pipeline() as pipe:
            pipe.sadd(keys.WORKERS, report.name)
            pipe.sadd(keys.MODELS, *(card["name"] for card in report.models))
            pipe.set(keys.worker(report.name), json.dumps(asdict(report)), px=int(ttl * 1000))
            pipe.execute()

    def forget_worker(self, name: str) -> None:
        """A worker has left."""
        with self.reachable(), self.client.pipeline() as pipe:
            pipe.srem(keys.WORKERS, name)
            pipe.delete(keys.worker(name))
            pipe.execute()

    def workers(self) -> list[WorkerReport]:
        """Reports of the workers that live; forgets the names of those that do not."""
        with self.reachable():
            names = sorted(cast("set[bytes]", self.client.smembers(keys.WORKERS)))
        with self.reachable():
            reports = self.client.mget([keys.worker(name.decode()) for name in names]) if names else []
        dead = [name for name, report in zip(names, reports, strict=True) if report is None]
        if dead:
            with self.reachable():
                self.client.srem(keys.WORKERS, *dead)
        return [WorkerReport.from_json(report) for report in reports if report is not None]

    def known_models(self) -> list[str]:
        """Names of all models that were ever served here."""
        with self.reachable():
            return sorted(name.decode() for name in cast("set[bytes]", self.client.smembers(keys.MODELS)))

    # Totals

    def count(self, worker: str, counters: Mapping[str, float]) -> None:
        """Add what a worker has done since it started, as far as that was not added before."""
        values = [str(part) for item in counters.items() for part in item]
        with self.reachable():
            self._count(keys=[keys.ENGINE_TOTALS, keys.counted(worker)], args=[COUNTED_SECONDS, *values])

    def totals(self) -> tuple[dict[str, float], dict[tuple[str, str], int]]:
        """The `Counters` of all workers together, and how many jobs there were by (status, model)."""
        with self.reachable(), self.client.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.ENGINE_TOTALS)
            pipe.hgetall(keys.JOB_TOTALS)
            engine, jobs = cast("list[Fields]", pipe.execute())
        parted = [(name.decode().partition(":"), int(count)) for name, count in jobs.items()]
        by_status = {(status, model): count for (status, _, model), count in parted}
        return {name.decode(): float(value) for name, value in engine.items()}, by_status

    # Tickets

    def issue_ticket(self, ticket: str, owner: str, ttl: int) -> None:
        """Let a ticket stand for a caller, once, for `ttl` seconds."""
        with self.reachable():
            self.client.set(keys.ticket(ticket), owner, ex=ttl)

    def redeem_ticket(self, ticket: str) -> str | None:
        """Whom a ticket stands for; it is void afterwards."""
        with self.reachable():
            owner = cast("bytes | None", self.client.getdel(keys.ticket(ticket)))
        return owner.decode() if owner is not None else None

    def ping(self) -> None:
        """Nothing, when Redis answers."""
        with self.reachable():
            self.client.ping()

    def check_fitness(self) -> None:
        """Nothing, when Redis keeps what it was given.

        Raises:
            StoreUnfit: when it would drop keys to make room.
        """
        with self.reachable():
            memory = self.client.info("memory")
        Memory.of(memory).check_fitness()

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Around one question. After Redis kept somebody waiting in vain, nobody else waits for a moment: threads
        are few."""
        if time.monotonic() < self._silent_until:
            raise StoreUnavailable("Redis does not answer (it did not a moment ago)")
        try:
            with reachable():
                yield
        except StoreUnavailable as error:
            if isinstance(error.__cause__, redis.exceptions.TimeoutError):
                self._silent_until = time.monotonic() + SILENT_SECONDS
            raise


def event_from_entry(job_id: str, entry_id: bytes, fields: Fields) -> dict[str, Any]:
    """A stream entry as the event of the contract (terminal ones still lack `result`)."""
    event = json.loads(fields[b"e"])
    head = {"seq": _seq(entry_id), "type": event.pop("type"), "job": job_id, "attempt": int(fields[b"a"])}
    return {**head, **event}


def _seq(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])


def _record(fields: Fields) -> JobRecord | None:
    return JobRecord.from_fields({k.decode(): v.decode() for k, v in fields.items()}) if fields else None
