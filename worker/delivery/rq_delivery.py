"""Deliveries: jobs that were taken off RQ's queues, and RQ's keys of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import redis
from redis.client import Pipeline
from redis.commands.core import Script

from denoised.jobs.errors import RecordError
from denoised.jobs.redis.deadline import reachable
from denoised.jobs.redis.refusals import store_error
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.queue_keys import QueueKeys
from denoised.jobs.store.waiting_lists import HAS_WAITING, RESTORE_TURNS
from denoised.worker.delivery.rq_scripts import RENEW, REQUEUE, TAKE


@dataclass(frozen=True)
class RqNames:
    """What RQ's keys of executions begin with, the set of this worker's executions, and that of all queues."""

    execution: str
    executions: str
    of_worker: str
    queues: str


@dataclass(frozen=True)
class RqDelivery:
    """RQ's side of a job that this worker has taken (see `worker.delivery.leases.Delivery`)."""

    source: RqSource
    queue: QueueKeys
    job: str
    execution: str
    more: bool

    @property
    def model(self) -> str:
        return self.queue.model

    @property
    def _member(self) -> str:
        return f"{self.job}:{self.execution}"

    @property
    def _lease_keys(self) -> list[str]:
        names = self.source.names
        return [self.queue.started, f"{names.execution}{self._member}", f"{names.executions}{self.job}"]

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
            pipeline.delete(f"{self.queue.job_prefix}{self.job}", self._lease_keys[2])
            raise_unless_damaged(pipeline.execute(raise_on_error=False))

    def requeue(self) -> None:
        names = [
            *self._lease_keys,
            self.source.names.of_worker,
            self.queue.waiting,
            f"{self.queue.job_prefix}{self.job}",
        ]
        names += [keys.turns(self.model), keys.caller_credits(self.model)]
        channel = keys.model_channel(self.model)
        with reachable():
            self.source.requeue(keys=names, args=[self.execution, self._member, self.job, channel])

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
        self._has_waiting: Script = client.register_script(HAS_WAITING)
        self._restore_turns: Script = client.register_script(RESTORE_TURNS)

    def take(
        self, queue: QueueKeys, waited: float = 0.0, passed_over: Iterable[str] = ()
    ) -> tuple[RqDelivery | None, list[str]]:
        """The next job of a model with a lease on it, None when there is none; and the ids of entries that were
        dropped, because they are not jobs.

        waited: seconds that the job must have waited; None also when it has not waited that long.
        passed_over: callers whose jobs are not taken now.

        If the reply is lost, the lease expires, and `Attempts.requeue_lost` finds the job.

        Raises:
            StoreUnavailable: when Redis does not answer, or refuses.
        """
        execution = uuid4().hex
        names = [
            queue.waiting,
            queue.started,
            self.names.of_worker,
            keys.turns(queue.model),
            keys.caller_credits(queue.model),
        ]
        args: list[str | int] = [execution, self.lease_seconds, self.worker, queue.job_prefix]
        args += [self.names.execution, self.names.executions, keys.job(""), repr(waited), *passed_over]
        with reachable():
            job, more, dropped = cast("tuple[bytes, int, list[bytes]]", self._take(keys=names, args=args))
        delivery = RqDelivery(self, queue, job.decode(errors="replace"), execution, more > 0) if job else None
        return delivery, [each.decode(errors="replace") for each in dropped]

    def waits(self, queue: QueueKeys) -> bool:
        """Whether a job waits for a model.

        Raises:
            StoreUnavailable: when Redis does not answer, or refuses.
        """
        with reachable():
            return bool(self._has_waiting(keys=[queue.waiting, keys.turns(queue.model)]))

    def restore_turns(self, queue: QueueKeys) -> None:
        """Let the callers wait that have jobs in a list, in case their turns were lost.

        Raises:
            StoreUnavailable: when Redis does not answer, or refuses.
        """
        with reachable():
            self._restore_turns(keys=[queue.waiting, keys.turns(queue.model), self.names.queues])


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
