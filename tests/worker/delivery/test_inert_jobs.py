"""What stands in Redis is never executed, RQ's own hooks included."""

from __future__ import annotations

import os

import redis
from rq import Callback, Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from denoised.worker.delivery.rq_worker import InertJob


def test_callbacks_that_a_job_names_are_not_imported(client: redis.Redis) -> None:
    queue = Queue("m", connection=client, serializer=JSONSerializer)
    callback = Callback("os.getcwd")
    job = queue.enqueue_call("denoised.sample", on_failure=callback, on_success=callback, on_stopped=callback)
    plain = Job.fetch(job.id, connection=client, serializer=JSONSerializer)
    assert plain.failure_callback is os.getcwd  # what RQ would call
    inert = InertJob.fetch(job.id, connection=client, serializer=JSONSerializer)
    assert (inert.failure_callback, inert.success_callback, inert.stopped_callback) == (None, None, None)
