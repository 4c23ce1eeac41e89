"""Which jobs a worker that is told to stop still finishes. No arithmetic on tensors, no queue."""

from __future__ import annotations

from collections.abc import Mapping


def to_give_back(pending: Mapping[str, int], evaluations: float) -> list[str]:
    """The jobs that are not done within a number of evaluations when those nearest their end go first.

    pending: evaluations to go, by job.
    """
    given_back = []
    for job, to_go in sorted(pending.items(), key=lambda item: item[1]):
        evaluations -= to_go
        if evaluations < 0:
            given_back.append(job)
    return given_back
