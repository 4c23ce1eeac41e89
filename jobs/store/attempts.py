"""The attempts of jobs: workers start them, and requeue what other workers lost.

Each method is one Lua script, as in `jobs.store.store`.
"""

from __future__ import annotations

import sys
import uuid
from dataclasses import replace
from typing import Any, cast

from denoised.jobs.record import JobRecord, check_runnable
from denoised.jobs.results.results import Results
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.queue_keys import QueueKeys
from denoised.jobs.store.record_reader import bounded_value, decode_reply
from denoised.jobs.store.scripts.job_scripts import MAX_RESUME_BYTES, REQUEUE_UNSTARTED, START, START_ALONE
from denoised.jobs.store.scripts.worker_scripts import REQUEUE_LOST
from denoised.jobs.store.started_attempt import StartedAttempt
from denoised.jobs.store.store_connection import StoreConnection
from denoised.jobs.store.update import event_json


class Attempts:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection, results: Results, result_ttl: int) -> None:
        """results: where resume points lie. result_ttl: seconds that a finished job is kept."""
        self._connection = connection
        self._results = results
        self._result_ttl = result_ttl
        client = connection.client
        self._start = client.register_script(START)
        self._start_alone = client.register_script(START_ALONE)
        self._requeue_unstarted = client.register_script(REQUEUE_UNSTARTED)
        self._requeue_lost = client.register_script(REQUEUE_LOST)

    def start(
        self,
        job_id: str,
        worker: str,
        numerics: str,
        execution: str | None = None,
        resume_limit: int = MAX_RESUME_BYTES,
    ) -> StartedAttempt | None:
        """Start an attempt where the last one was saved, if that had the same numerics, else from the beginning.

        None when the job is over (canceled, say, or failed now since it keeps losing workers). Repeated for the same
        `execution`, since a reply was lost, it starts nothing more. A resume point of more than `resume_limit` bytes is
        dropped unread.

        Raises:
            RecordError: when the attempt has started but this version cannot run the job.
        """
        names = [keys.job(job_id), keys.events(job_id), keys.resume(job_id)]
        started = event_json("started", {"worker": worker})
        args = [worker, started, numerics, str(self._result_ttl), execution or uuid.uuid4().hex, str(resume_limit)]
        with self._connection.reachable():
            attempt, *found = cast("list[Any]", self._start(keys=names, args=args))
        if not attempt:
            return None
        fields, resume_point, waited = found
        flat = decode_reply(fields)
        check_runnable(flat)
        record = replace(JobRecord.from_fields(flat), attempt=attempt)
        if resume_point is not None:  # one that is lost counts as damaged
            resume_point = self._results.value(job_id, resume_point, resume_limit) or b""
        return StartedAttempt(record, resume_point, record.status == "queued", float(waited))

    def start_alone(self, job_id: str, attempt: int, worker: str) -> bool:
        """Let a quarantined attempt run: from now on losing its worker counts. False when it is not current."""
        started = event_json("started", {"worker": worker})
        with self._connection.reachable():
            return bool(self._start_alone(keys=[keys.job(job_id), keys.events(job_id)], args=[attempt, started]))

    def requeue_unstarted(self, job_id: str) -> bool:
        """Requeue a job that a worker had no memory to start, which counts like a lost worker.

        False when the job is over, or has failed now: this was the last of `max_attempts`.
        """
        queued = event_json("queued", {"queue_position": 0, "eta_seconds": None})
        with self._connection.reachable():
            names = [keys.job(job_id), keys.events(job_id)]
            return bool(self._requeue_unstarted(keys=names, args=[queued, self._result_ttl]))

    def resume_point(self, job_id: str) -> bytes | None:
        """Where the job's images were saved last, None when they were not."""
        with self._connection.reachable():
            found = self._connection.client.getrange(keys.resume(job_id), 0, MAX_RESUME_BYTES)
        return self._results.value(job_id, bounded_value(found, MAX_RESUME_BYTES), MAX_RESUME_BYTES)

    def requeue_lost(self, queue: QueueKeys, grace: float, latest: float = sys.float_info.max) -> int:
        """Requeue the jobs of lost workers at the front of their lists, in the order in which they were accepted.

        grace: seconds that a job may spend between queue and lease.
        latest: if it is later than this by Redis' clock, that was set, and nothing is requeued.

        Returns how many there were.
        """
        lists = [keys.intermediate(queue.model), keys.turns(queue.model), keys.caller_credits(queue.model)]
        names = [queue.waiting, queue.intermediate, queue.started, *lists]
        args = [repr(grace), queue.job_prefix, keys.job(""), keys.model_channel(queue.model), repr(latest)]
        with self._connection.reachable():
            return int(self._requeue_lost(keys=names, args=args))
