"""Jobs, events, pictures and workers in Redis. The only place that knows a key.

    denoised:job:{id}              hash     the `JobRecord`, and `seq`, `writes`, `execution`, `saved_step`,
                                            `saved_evaluations`
    denoised:job:{id}:events       stream   one entry an event, id = "{seq}-0"
    denoised:job:{id}:image:{k}    string   the encoded picture
    denoised:job:{id}:resume       string   where its images are (`worker.resume`), until it is over
    denoised:jobs:{owner}          zset     job ids by created_at
    denoised:idempotency:{owner}:{hash}     string   job id and body hash, 24 h
    denoised:between:{model}       hash     since when job ids stand between its queue and a worker
    denoised:workers               set      names of workers
    denoised:models                set      names of all models that were ever served
    denoised:ticket:{ticket}       string   the caller it stands for, 30 s
    denoised:worker:{name}         string   its `WorkerReport`, expires with its lease
    denoised:worker:{name}:counted hash     how much of its `Counters` is in the totals, a day
    denoised:totals:engine         hash     the `Counters` of all workers there ever were
    denoised:totals:jobs           hash     jobs by "{status}:{model}"; accepted ones, too
    denoised:model:{name}          channel  work was queued for that model
    denoised:canceled              channel  ids of jobs that were canceled

All state changes of a job run as one Lua script each, so that they happen once and whole:
a terminal status never changes, and a worker whose attempt is over writes nothing. Events
get `seq` inside the script, so it has no gaps. RQ's own keys (rq:*) belong to RQ.

What belongs to a job that is over expires after `result_ttl`, and so does a resume point; a job that
is not over never does.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from worker.errors import StoreFull, StoreUnavailable, StoreUnfit
from worker.job import TERMINAL, JobRecord, Status, WorkerReport
from worker.scripts import COLLECT, COUNT, START, WRITE

# What passes: no connection, no answer in time, memory full, a replica that may not write.
AWAY = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
)

Fields = Mapping[bytes, bytes]
REDIS_URLS = "redis://:PASSWORD@HOST:PORT/0, rediss://… or unix://PATH; / @ : ? # % in the password as %2F and so on"

EVENT_CAP = 50_000
KEEPS = "noeviction"
FULL = 0.9  # of maxmemory; the rest is for jobs that were accepted to end in
LISTED_SECONDS = 86_400  # that a job may have waited and run, and still be listed for as long as its results are kept
SILENT_SECONDS = 0.5
CANCELED_CHANNEL = "denoised:canceled"
WORKERS_KEY = "denoised:workers"
MODELS_KEY = "denoised:models"
ENGINE_TOTALS_KEY = "denoised:totals:engine"
JOB_TOTALS_KEY = "denoised:totals:jobs"  # worker.scripts has it, too
COUNTED_SECONDS = 86_400  # longer than a worker may be out of reach and come back


@dataclass
class Write:
    """One atomic change of a job: fields, new pictures, events, and perhaps a new status.

    resume: what another attempt would go on from (`worker.resume`). attempt: whose write it is; 0 = nobody's in
    particular (a cancel). number: rises with each write of an attempt, so that one repeated after a lost reply is not
    applied twice.
    """

    job: str
    attempt: int = 0
    number: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    images: dict[int, bytes] = field(default_factory=dict)
    status: Status | None = None
    image_count: int = 0
    resume: bytes | None = None

    def save(self, resume: bytes, step: int, evaluations: int) -> None:
        """Have another attempt go on from here."""
        self.resume = resume
        self.fields |= {"saved_step": step, "saved_evaluations": evaluations}

    def end(self, status: Status, error: Mapping[str, str] | None = None) -> None:
        """Make this the last write of its job."""
        self.status = status
        self.fields["finished_at"] = repr(time.time())
        if error is not None:
            self.fields["error"] = json.dumps(dict(error))
        self.events.append({"type": status})


@dataclass(frozen=True)
class Queue:
    """The keys of a model's queue as RQ names them: jobs that wait, that a worker is just taking, and the leases of
    those taken; job_prefix: of RQ's hashes."""

    model: str
    waiting: str
    between: str
    started: str
    job_prefix: str


def ending(record: JobRecord, status: Status, error: Mapping[str, str] | None = None) -> Write:
    """The write that ends a job from outside, whatever attempt it is in."""
    write = Write(record.id, image_count=record.request.n)
    write.end(status, error)
    return write


def connect(url: str, timeout: float = 1.0, connections: int = 64) -> redis.Redis:
    """A client that gives up after `timeout` seconds and never retries by itself.

    Raises:
        StoreUnavailable: for a URL that cannot be read; it is not repeated, since it may hold a password.
    """
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            max_connections=connections,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        raise StoreUnavailable(f"the Redis URL cannot be read (allowed: {REDIS_URLS})") from None


class Store:
    """Synchronous, thread-safe; used by worker threads and from the front end's thread pool.

    Raises:
        StoreUnavailable: from every method, when Redis does not answer in time.
    """

    def __init__(self, client: redis.Redis, result_ttl: int = 86_400) -> None:
        self.client = client
        self.result_ttl = result_ttl
        self._start = client.register_script(START)
        self._write = client.register_script(WRITE)
        self._collect = client.register_script(COLLECT)
        self._count = client.register_script(COUNT)
        self._silent_until = 0.0

    # Jobs

    def reserve(self, job_id: str, pipeline: Pipeline) -> bool:
        """Begin a transaction that holds only while there is no such job. False when there is one."""
        pipeline.watch(_job_key(job_id))
        free = not pipeline.exists(_job_key(job_id))
        pipeline.multi()
        return bool(free)

    def create(self, job: JobRecord, queued_event: Mapping[str, Any], pipeline: Pipeline) -> None:
        """Add a new job to a transaction, with its first event."""
        fields: dict[Any, Any] = {**job.to_fields(), "seq": 1, "writes": 0}
        pipeline.hset(_job_key(job.id), mapping=fields)
        entry = {"a": job.attempt, "e": _event_json("queued", queued_event)}
        pipeline.xadd(events_key(job.id), entry, id="1-0")  # type: ignore[arg-type]
        listed = self.result_ttl + LISTED_SECONDS
        pipeline.zadd(_jobs_key(job.owner), {job.id: job.created_at})
        pipeline.zremrangebyscore(_jobs_key(job.owner), "-inf", job.created_at - listed)
        pipeline.expire(_jobs_key(job.owner), listed)
        pipeline.hincrby(JOB_TOTALS_KEY, f"accepted:{job.request.model}", 1)
        pipeline.publish(model_channel(job.request.model), job.id)

    def job(self, job_id: str) -> JobRecord | None:
        """The record, None when there is none (any more)."""
        with self._reachable():
            return _record(cast("Fields", self.client.hgetall(_job_key(job_id))))

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Several records in one round trip."""
        with self._reachable(), self.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(_job_key(job_id))
            return [_record(fields) for fields in pipe.execute()]

    def jobs(self, owner: str, limit: int, before: float | None = None) -> list[JobRecord]:
        """A caller's jobs, newest first, created before a time; forgets those that expired."""
        key = _jobs_key(owner)
        found: list[JobRecord] = []
        highest = f"({before!r}" if before is not None else "+inf"
        with self._reachable():
            while len(found) < limit:
                reply = self.client.zrevrangebyscore(key, highest, "-inf", 0, limit, withscores=True)
                batch = cast("list[tuple[bytes, float]]", reply)
                if not batch:
                    break
                records = self.records([job_id.decode() for job_id, _ in batch])
                gone = [job_id for (job_id, _), record in zip(batch, records, strict=True) if record is None]
                if gone:
                    self.client.zrem(key, *gone)
                found += [record for record in records if record is not None]
                highest = f"({batch[-1][1]!r}"
        return found[:limit]

    def start(self, job_id: str, worker: str, numerics: str, execution: str | None = None) -> int:
        """Begin an attempt. Returns its number, 0 when the job is over: canceled, say, or one whose workers all died.

        It begins where the last attempt was saved if that had the same numerics, else anew. An `execution` begins
        once: asked again, because the reply was lost, it gets the same answer.
        """
        keys = [_job_key(job_id), events_key(job_id)]
        started = _event_json("started", {"worker": worker})
        execution = execution or uuid.uuid4().hex
        args = [repr(time.time()), worker, started, numerics, str(self.result_ttl), execution]
        with self._reachable():
            return int(self._start(keys=keys, args=args))

    def write(self, write: Write) -> bool:
        """Apply one change. False when the job is over, or is another attempt's by now."""
        return self.write_all([write])[0]

    def write_all(self, writes: Sequence[Write]) -> list[bool]:
        """Apply changes of several jobs in one round trip, each atomic by itself."""
        with self._reachable(), self.client.pipeline(transaction=False) as pipe:
            for write in writes:
                self._write(keys=_write_keys(write), args=self._write_args(write), client=pipe)
            return [bool(result) for result in pipe.execute()]

    def resume_point(self, job_id: str) -> bytes | None:
        """Where the job's images were saved, None when they were not."""
        with self._reachable():
            return cast("bytes | None", self.client.get(_resume_key(job_id)))

    def collect(self, queue: Queue, patience: float) -> int:
        """Put the jobs of dead workers back to the front of their queue, in the order in which they were accepted.

        patience: seconds that a job may stand between queue and worker. Returns how many there were.
        """
        keys = [queue.waiting, queue.between, queue.started, f"denoised:between:{queue.model}"]
        args = [repr(time.time()), repr(patience), queue.job_prefix, _job_key(""), model_channel(queue.model)]
        with self._reachable():
            return int(self._collect(keys=keys, args=args))

    def cancel(self, job_id: str) -> JobRecord | None:
        """End a job that is not over yet as canceled; returns what it then is, None if unknown."""
        record = self.job(job_id)
        if record is None or record.terminal:
            return record
        self.write(ending(record, "canceled"))
        with self._reachable():
            self.client.publish(CANCELED_CHANNEL, job_id)
        return self.job(job_id)

    def image(self, job_id: str, index: int) -> bytes | None:
        """An encoded picture."""
        with self._reachable():
            return cast("bytes | None", self.client.get(_image_key(job_id, index)))

    # Events

    def events(self, job_id: str, after: int = 0, count: int = 500) -> list[dict[str, Any]]:
        """Stored events with seq > `after`, oldest first, at most `count`."""
        with self._reachable():
            reply = self.client.xrange(events_key(job_id), min=f"{after + 1}-0", count=count)
            entries = cast("list[tuple[bytes, Fields]]", reply)
        return [event_from_entry(job_id, entry_id, fields) for entry_id, fields in entries]

    def last_seq(self, job_id: str) -> int:
        """The seq of the newest event, 0 when there is none."""
        with self._reachable():
            entries = cast("list[tuple[bytes, Fields]]", self.client.xrevrange(events_key(job_id), count=1))
        return _seq(entries[0][0]) if entries else 0

    # Idempotency

    def claim(self, owner: str, key_hash: str, job_id: str, body_hash: str) -> tuple[str, str]:
        """Tie an Idempotency-Key to a job, once. Returns (job id, body hash) of whoever came first."""
        with self._reachable():
            won = self.client.set(_claim_key(owner, key_hash), f"{job_id} {body_hash}", nx=True, ex=86_400)
        held = None if won else self.claimed(owner, key_hash)
        return held or (job_id, body_hash)

    def claimed(self, owner: str, key_hash: str) -> tuple[str, str] | None:
        """(job id, body hash) that an Idempotency-Key is tied to, if it is."""
        with self._reachable():
            held = cast("bytes | None", self.client.get(_claim_key(owner, key_hash)))
        if held is None:
            return None
        job_id, _, body_hash = held.decode().partition(" ")
        return job_id, body_hash

    # Workers

    def report(self, report: WorkerReport, ttl: float) -> None:
        """Publish that a worker lives and what it serves."""
        with self._reachable(), self.client.pipeline() as pipe:
            pipe.sadd(WORKERS_KEY, report.name)
            pipe.sadd(MODELS_KEY, *(card["name"] for card in report.models))
            pipe.set(_worker_key(report.name), json.dumps(asdict(report)), px=int(ttl * 1000))
            pipe.execute()

    def forget_worker(self, name: str) -> None:
        """A worker has left."""
        with self._reachable(), self.client.pipeline() as pipe:
            pipe.srem(WORKERS_KEY, name)
            pipe.delete(_worker_key(name))
            pipe.execute()

    def workers(self) -> list[WorkerReport]:
        """Reports of the workers that live; forgets the names of those that do not."""
        with self._reachable():
            names = sorted(cast("set[bytes]", self.client.smembers(WORKERS_KEY)))
            reports = self.client.mget([_worker_key(name.decode()) for name in names]) if names else []
            dead = [name for name, report in zip(names, reports, strict=True) if report is None]
            if dead:
                self.client.srem(WORKERS_KEY, *dead)
        return [WorkerReport(**json.loads(report)) for report in reports if report is not None]

    def known_models(self) -> list[str]:
        """Names of all models that were ever served here."""
        with self._reachable():
            return sorted(name.decode() for name in cast("set[bytes]", self.client.smembers(MODELS_KEY)))

    # Totals

    def count(self, worker: str, counters: Mapping[str, float]) -> None:
        """Add what a worker has done since it started, as far as that was not added before."""
        values = [str(part) for item in counters.items() for part in item]
        with self._reachable():
            self._count(keys=[ENGINE_TOTALS_KEY, f"{_worker_key(worker)}:counted"], args=[COUNTED_SECONDS, *values])

    def totals(self) -> tuple[dict[str, float], dict[tuple[str, str], int]]:
        """The `Counters` of all workers together, and how many jobs there were by (status, model)."""
        with self._reachable(), self.client.pipeline(transaction=False) as pipe:
            pipe.hgetall(ENGINE_TOTALS_KEY)
            pipe.hgetall(JOB_TOTALS_KEY)
            engine, jobs = cast("list[Fields]", pipe.execute())
        parted = [(name.decode().partition(":"), int(count)) for name, count in jobs.items()]
        by_status = {(status, model): count for (status, _, model), count in parted}
        return {name.decode(): float(value) for name, value in engine.items()}, by_status

    # Tickets

    def issue_ticket(self, ticket: str, owner: str, ttl: int) -> None:
        """Let a ticket stand for a caller, once, for `ttl` seconds."""
        with self._reachable():
            self.client.set(f"denoised:ticket:{ticket}", owner, ex=ttl)

    def redeem_ticket(self, ticket: str) -> str | None:
        """Whom a ticket stands for; it is void afterwards."""
        with self._reachable():
            owner = cast("bytes | None", self.client.getdel(f"denoised:ticket:{ticket}"))
        return owner.decode() if owner is not None else None

    def ping(self) -> None:
        """Nothing, when Redis answers."""
        with self._reachable():
            self.client.ping()

    def check_room(self) -> None:
        """Nothing, when there is memory for new jobs beside those that are there.

        Raises:
            StoreFull: when less than a tenth of `maxmemory` is left.
        """
        with self._reachable():
            memory = self.client.info("memory")
        used, limit = int(memory["used_memory"]), int(memory.get("maxmemory", 0))
        if limit and used > FULL * limit:
            raise StoreFull(f"Redis uses {used} bytes (allowed: {FULL:.0%} of its maxmemory, {limit})")

    def check_fitness(self) -> None:
        """Nothing, when Redis keeps what it was given.

        Raises:
            StoreUnfit: when it would drop keys to make room: queued jobs would vanish without a word.
        """
        with self._reachable():
            memory = self.client.info("memory")
        policy = memory.get("maxmemory_policy", KEEPS)
        if policy != KEEPS:
            raise StoreUnfit(
                f"Redis would drop jobs to make room (maxmemory-policy is {policy}, allowed: {KEEPS}); "
                f"redis-cli CONFIG SET maxmemory-policy {KEEPS}"
            )

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """After Redis kept somebody waiting in vain, nobody else waits for a moment: threads are few."""
        if time.monotonic() < self._silent_until:
            raise StoreUnavailable("Redis does not answer (it did not a moment ago)")
        try:
            with reachable():
                yield
        except StoreUnavailable as error:
            if isinstance(error.__cause__, redis.exceptions.TimeoutError):
                self._silent_until = time.monotonic() + SILENT_SECONDS
            raise

    def _write_args(self, write: Write) -> list[str | bytes]:
        over = write.status in TERMINAL
        spec = {
            "attempt": write.attempt,
            "number": write.number,
            "fields": {name: str(value) for name, value in write.fields.items()},
            "events": [_event_json(event["type"], event) for event in write.events],
            "status": write.status or "",
            "ttl": self.result_ttl if over else 0,
            "images": write.image_count,
            "cap": EVENT_CAP,
            "resume_ttl": self.result_ttl if write.resume is not None else 0,
        }
        return [json.dumps(spec), *write.images.values(), *([] if write.resume is None else [write.resume])]


def event_from_entry(job_id: str, entry_id: bytes, fields: Fields) -> dict[str, Any]:
    """A stream entry as the event of the contract (terminal ones still lack `result`)."""
    event = json.loads(fields[b"e"])
    head = {"seq": _seq(entry_id), "type": event.pop("type"), "job": job_id, "attempt": int(fields[b"a"])}
    return {**head, **event}


def events_key(job_id: str) -> str:
    return f"denoised:job:{job_id}:events"


def model_channel(model: str) -> str:
    return f"denoised:model:{model}"


def _job_key(job_id: str) -> str:
    return f"denoised:job:{job_id}"


def _image_key(job_id: str, index: int) -> str:
    return f"denoised:job:{job_id}:image:{index}"


def _resume_key(job_id: str) -> str:
    return f"denoised:job:{job_id}:resume"


def _jobs_key(owner: str) -> str:
    return f"denoised:jobs:{owner}"


def _claim_key(owner: str, key_hash: str) -> str:
    return f"denoised:idempotency:{owner}:{key_hash}"


def _worker_key(name: str) -> str:
    return f"denoised:worker:{name}"


def _write_keys(write: Write) -> list[str]:
    images = [_image_key(write.job, index) for index in write.images]
    resume = [] if write.resume is None else [_resume_key(write.job)]
    return [_job_key(write.job), events_key(write.job), *images, *resume]


def _event_json(kind: str, event: Mapping[str, Any]) -> str:
    return json.dumps({"type": kind, **event})


def _seq(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])


def _record(fields: Fields) -> JobRecord | None:
    return JobRecord.from_fields({k.decode(): v.decode() for k, v in fields.items()}) if fields else None


@contextmanager
def reachable() -> Iterator[None]:
    """Redis' silence, or its refusal to write for now, as our own error."""
    try:
        yield
    except redis.exceptions.OutOfMemoryError as error:
        raise StoreFull(f"Redis does not answer ({error})") from error
    except AWAY as error:
        raise StoreUnavailable(f"Redis does not answer ({error})") from error
