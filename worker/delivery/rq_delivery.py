"""Deliveries: jobs that were taken off RQ's queues, and RQ's keys of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import redis
from redis.client import Pipeline
from redis.commands.core import Script

from denoised.jobs.errors import RecordError
from denoised.jobs.redis.deadline import reachable
from denoised.jobs.redis.refusals import store_error
from denoised.jobs.store.redis_keys import job as job_key
from denoised.jobs.store.redis_keys import model_channel
from denoised.jobs.store.store import QueueKeys
from denoised.worker.delivery.rq_scripts import RENEW, REQUEUE, TAKE


@dataclass(frozen=True)
class RqNames:
    """What RQ's keys of executions begin with, and the set of this worker's executions."""

    execution: str
    executions: str
    of_worker: str


@dataclass(frozen=True)
class RqDelivery:
    """RQ's side of a job that this worker has taken (see `worker.delivery.leases.Delivery`)."""

    source: RqSource
    keys: QueueKeys
    job: str
    execution: str
    more: bool

    @property
    def model(self) -> str:
        return self.keys.model

    @property
    def _member(self) -> str:
        return f"{self.job}:{self.execution}"

    @property
    def _lease_keys(self) -> list[str]:
        names = self.source.names
        return [self.keys.started, f"{names.execution}{self._member}", f"{names.executions}{self.job}"]

    def renew(self, pipeline: Pipeline) -> None:
        names = self._lease_keys
        pipeline.eval(RENEW, len(names), *names, self.execution, self.source.lease_seconds, self._member)

    def release(self) -> None:
        with reachable(), self.source.client.pipeline() as pipeline:
            self._end_lease(pipeline)
            raise_unless_damaged(pipeline.execute(raise_on_error=False))

    def ack(self) -> None:
        with reachable(), self.source.client.pipeline() as pipeline:
            self._end_lease(pipeline)
            pipeline.delete(f"{self.keys.job_prefix}{self.job}", self._lease_keys[2])
            raise_unless_damaged(pipeline.execute(raise_on_error=False))

    def requeue(self) -> None:
        names = [*self._lease_keys, self.source.names.of_worker, self.keys.waiting, f"{self.keys.job_prefix}{self.job}"]
        with reachable():
            self.source.requeue(keys=names, args=[self.execution, self._member, self.job, model_channel(self.model)])

    def _end_lease(self, pipeline: Pipeline) -> None:
        started, execution, executions = self._lease_keys
        pipeline.zrem(started, self._member)
        pipeline.delete(execution)
        pipeline.zrem(executions, self.execution)
        pipeline.srem(self.source.names.of_worker, self._member)


class RqSource:
    """Takes jobs off RQ's queues.

    worker: its name.
    lease_seconds: RQ's lease on a job, a whole number.
    """

    def __init__(self, client: redis.Redis, worker: str, names: RqNames, lease_seconds: int) -> None:
        self.client = client
        self.worker = worker
        self.names = names
        self.lease_seconds = lease_seconds
        self.requeue: Script = client.register_script(REQUEUE)
        self._take: Script = client.register_script(TAKE)

    def waiting_seconds(self, keys: QueueKeys) -> float | None:
        """How long the next job of a queue has waited since it was accepted; None when the queue is empty.

        Raises:
            StoreUnavailable: when Redis does not answer, or refuses.
        """
        with reachable(), self.client.pipeline(transaction=False) as pipeline:
            pipeline.lindex(keys.waiting, 0)
            pipeline.time()
            job, (seconds, microseconds) = pipeline.execute()
            if job is None:
                return None
            created = self.client.hget(job_key(job.decode(errors="replace")), "created_at")
        try:
            return float(seconds + microseconds / 1e6 - float(cast(bytes, created)))
        except (TypeError, ValueError):
            return math.inf  # no record of ours: `take` drops it

    def take(self, keys: QueueKeys) -> tuple[RqDelivery | None, list[str]]:
        """The next job of a queue with a lease on it, None when the queue is empty; and the ids of entries that were
        dropped, because they are not jobs.

        If the reply is lost, the lease expires, and `Store.requeue_lost` finds the job.

        Raises:
            StoreUnavailable: when Redis does not answer, or refuses.
        """
        execution = uuid4().hex
        names = [keys.waiting, keys.started, self.names.of_worker]
        args: list[str | int] = [execution, self.lease_seconds, self.worker, keys.job_prefix]
        args += [self.names.execution, self.names.executions]
        with reachable():
            job, waiting, dropped = cast("tuple[bytes, int, list[bytes]]", self._take(keys=names, args=args))
        delivery = RqDelivery(self, keys, job.decode(errors="replace"), execution, waiting > 0) if job else None
        return delivery, [each.decode(errors="replace") for each in dropped]


def raise_unless_damaged(replies: Sequence[Any]) -> Sequence[Any]:
    """The replies of a pipeline. One that reports a damaged key stays among them; the others were applied.

    Raises:
        StoreUnavailable: for any other error reply.
    """
    for reply in replies:
        if isinstance(reply, redis.exceptions.RedisError):
            error = store_error(reply)
            if not isinstance(error, RecordError):
                raise error
    return replies
