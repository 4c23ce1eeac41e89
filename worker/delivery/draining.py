"""Which jobs a worker still finishes when it stops. No tensors, no queue."""

from __future__ import annotations

from collections.abc import Mapping


def jobs_to_requeue(pending: Mapping[str, int], evaluations: float) -> list[str]:
    """The jobs that are not done within `evaluations` evaluations when those nearest their end go first.

    pending: evaluations to go, by job.
    """
    requeued = []
    for job, to_go in sorted(pending.items(), key=lambda item: item[1]):
        evaluations -= to_go
        if evaluations < 0:
            requeued.append(job)
    return requeued
