"""Jobs in Redis (`jobs.store.redis_keys` lists the keys), and the other parts of the store.

Every change of a job's state is one Lua script (`jobs.store.scripts`), so that it happens once and completely: a
terminal status never changes, and a worker whose attempt is over writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.client import Pipeline

from denoised.jobs.errors import RecordError
from denoised.jobs.format import FORMAT
from denoised.jobs.record import JobRecord
from denoised.jobs.results.ledger import Ledger
from denoised.jobs.results.reference import MAX_BYTES as MAX_REFERENCE_BYTES
from denoised.jobs.results.result_store import ResultStore
from denoised.jobs.results.results import Results
from denoised.jobs.results.settings import ResultSettings
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.array_files import ArrayFiles
from denoised.jobs.store.attempts import Attempts
from denoised.jobs.store.event_log import EventLog
from denoised.jobs.store.idempotency import IdempotencyKeys
from denoised.jobs.store.input_pictures import InputPictures, add_inputs
from denoised.jobs.store.job_listing import JobListing
from denoised.jobs.store.models.model_choices import ModelChoices
from denoised.jobs.store.models.model_claims import ModelClaims
from denoised.jobs.store.record_reader import RecordReader, bounded_value, raise_if_damaged
from denoised.jobs.store.scripts.job_functions import MAX_PICTURE_BYTES
from denoised.jobs.store.scripts.job_scripts import UPDATE
from denoised.jobs.store.scripts.script_prelude import OWN
from denoised.jobs.store.store_connection import StoreConnection
from denoised.jobs.store.tickets import Tickets
from denoised.jobs.store.update import JobUpdate, UpdateResult, event_json, final_update
from denoised.jobs.store.usage import UsageCounters, keep_images
from denoised.jobs.store.webhook_queue import WebhookQueue
from denoised.jobs.store.worker_registry import WorkerRegistry

log = logging.getLogger("denoised.jobs")

IN_REDIS = ResultSettings()
NO_INPUTS: Mapping[str, bytes] = {}
LISTED_SECONDS = 86_400  # a job may wait and run for this long and still be listed for as long as its results are kept


@dataclass(frozen=True)
class Outcome:
    """A job and those of the requested pictures, by index, that are finished."""

    record: JobRecord
    pictures: Mapping[int, bytes] = field(default_factory=dict)


class Store:
    """Synchronous and thread-safe; used by worker threads and from the front end's thread pool.

    Raises:
        StoreUnavailable: from every method, when Redis does not answer in time.
        RecordError: from methods that return one job, when its record cannot be read.
    """

    def __init__(
        self,
        client: redis.Redis,
        result_ttl: int = 86_400,
        results: ResultSettings = IN_REDIS,
        result_store: ResultStore | None = None,
    ) -> None:
        """result_ttl: seconds that a finished job is kept. result_store: where large values lie; None = in Redis."""
        self.result_ttl = result_ttl
        self.connection = StoreConnection(client)
        self.results = Results(Ledger(self.connection, results), result_store)
        self.events = EventLog(self.connection)
        self.listing = JobListing(self.connection)
        self.attempts = Attempts(self.connection, self.results, result_ttl)
        self._reader = RecordReader(self.connection, self.results)
        self.idempotency = IdempotencyKeys(self.connection)
        self.inputs = InputPictures(self.connection, result_ttl)
        self.arrays = ArrayFiles(self.connection, self.results)
        self.workers = WorkerRegistry(self.connection)
        self.claims = ModelClaims(self.connection)
        self.tickets = Tickets(self.connection)
        self.usage = UsageCounters(self.connection)
        self.model_choices = ModelChoices(self.connection)
        self.webhooks = WebhookQueue(self.connection)
        self._update = client.register_script(UPDATE)
        self._own = client.register_script(OWN)

    @property
    def client(self) -> redis.Redis:
        return self.connection.client

    def reachable(self) -> AbstractContextManager[None]:
        """See `StoreConnection.reachable`."""
        return self.connection.reachable()

    # The front end's side

    def reserve(self, job_id: str, pipeline: Pipeline) -> bool:
        """Begin a transaction that fails if a job of this id appears before it commits. False when the id is taken."""
        with self.reachable():
            pipeline.watch(keys.job(job_id))
        with self.reachable():
            free = not pipeline.exists(keys.job(job_id))
        pipeline.multi()
        return bool(free)

    def create(
        self,
        job: JobRecord,
        queued_event: Mapping[str, Any],
        pipeline: Pipeline,
        inputs: Mapping[str, bytes] = NO_INPUTS,
    ) -> None:
        """Add a new job, its first event and the pictures that it starts from to a transaction.

        inputs: PNGs by key.
        """
        fields: dict[Any, Any] = {**job.to_fields(), "seq": 1, "writes": 0}
        pipeline.hset(keys.job(job.id), mapping=fields)
        entry = {"a": job.attempt, "e": event_json("queued", queued_event), "f": FORMAT}
        pipeline.xadd(keys.events(job.id), entry, id="1-0")  # type: ignore[arg-type]
        listed = self.result_ttl + LISTED_SECONDS
        pipeline.zadd(keys.jobs(job.owner), {job.id: job.created_at})
        pipeline.zremrangebyscore(keys.jobs(job.owner), "-inf", job.created_at - listed)
        pipeline.expire(keys.jobs(job.owner), listed)
        keep_images(job, pipeline, 2 * listed)
        add_inputs(job.id, inputs, pipeline)
        pipeline.hincrby(keys.JOB_TOTALS, keys.accepted_jobs(job.request.model), 1)
        pipeline.publish(keys.model_channel(job.request.model), job.id)

    def discard(self, job: JobRecord) -> None:
        """Remove a job that could not be accepted."""
        with self.reachable(), self.client.pipeline(transaction=False) as pipe:
            pipe.delete(keys.job(job.id), keys.events(job.id))
            pipe.zrem(keys.jobs(job.owner), job.id)
            pipe.zrem(keys.kept_images(job.owner), f"{job.id}:{job.request.n}")
            for key in job.inputs.values():
                pipe.srem(keys.input_jobs(key), job.id)
                pipe.expire(key, self.result_ttl)
            pipe.execute(raise_on_error=False)

    def job(self, job_id: str) -> JobRecord | None:
        """The record, None when the job is unknown or has expired."""
        return raise_if_damaged(self._reader.read([job_id])[job_id])

    def outcome(self, job_id: str, pictures: int = 0) -> Outcome | None:
        """The record and the first `pictures` pictures in one round trip; None when the job is unknown or expired."""
        record, finished = self._reader.read_with_pictures(job_id, pictures)
        return Outcome(record, finished) if record is not None else None

    def image(self, job_id: str, index: int) -> bytes | None:
        """An encoded picture; None when it is not finished, has expired, or is larger than any picture."""
        with self.reachable():
            found = self.client.getrange(keys.image(job_id, index), 0, MAX_PICTURE_BYTES)
        return self.results.value(job_id, bounded_value(found, MAX_PICTURE_BYTES), MAX_PICTURE_BYTES)

    def image_link(self, job_id: str, index: int, seconds: int, media_type: str, filename: str) -> str | None:
        """A URL of a picture that lies outside Redis; None when it is in Redis, or where it lies has no URLs."""
        with self.reachable():
            found = self.client.getrange(keys.image(job_id, index), 0, MAX_REFERENCE_BYTES)
        reply = bounded_value(found, MAX_REFERENCE_BYTES)
        return self.results.link(job_id, reply, seconds, media_type, filename)

    def cancel(self, job_id: str) -> JobRecord | None:
        """Cancel a job that is not over. Returns its record afterward, None when it is unknown."""
        record = self.job(job_id)
        if record is None or record.terminal:
            return record
        self.write(final_update(record, "canceled"))
        with self.reachable():
            self.client.publish(keys.CANCELED_CHANNEL, job_id)
        return self.job(job_id)

    # The workers' side

    def write(self, update: JobUpdate) -> bool:
        """Apply an update. False when it is refused: the job is over or belongs to another attempt."""
        return bool(self.write_all([update])[0])

    def write_all(self, updates: Sequence[JobUpdate]) -> list[UpdateResult]:
        """Apply updates of several jobs in one round trip, each atomic by itself.

        An update of a job whose keys are damaged is refused, and logged.
        """

        moved = self.results.move_out(updates)

        def queue_commands(pipe: Pipeline) -> None:
            for update in moved:
                names = update.keys()
                pipe.evalsha(self._update.sha, len(names), *names, *update.arguments(self.result_ttl))

        with self.reachable():
            replies = self.connection.run_script(self._update, queue_commands)
        for update, reply in zip(updates, replies, strict=True):
            if isinstance(reply, RecordError):
                log.warning("update refused", extra={"job": update.job, "reason": str(reply)})
        results = [UpdateResult(0 if isinstance(reply, RecordError) else reply) for reply in replies]
        self.results.written(moved, results)
        return results

    # Redis itself

    def ping(self) -> None:
        """Return when Redis answers."""
        with self.reachable():
            self.client.ping()

    def repair_keys(self, types: Mapping[str, str]) -> bool:
        """Remove shared keys that have another type than they should. types: by key. Returns whether there were any."""
        with self.reachable():
            return bool(self._own(keys=list(types), args=list(types.values())))

    def check_writable(self) -> None:
        """Return when Redis accepts a write. Nothing is written, so this works at `maxmemory`, too."""
        with self.reachable():
            self.client.delete(keys.PROBE)
