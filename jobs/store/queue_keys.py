"""RQ's keys of a queue, as the scripts get them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QueueKeys:
    """RQ's keys of a model's queue.

    waiting: jobs that no worker has taken: the list of callers without a key, whose name that of the others begin with.
    intermediate: jobs that a worker is taking at this moment.
    started: leases of the jobs taken.
    job_prefix: of RQ's job hashes.
    """

    model: str
    waiting: str
    intermediate: str
    started: str
    job_prefix: str
