"""What the engine has capacity for, and how jobs for it are taken off their queues."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from denoised.worker.delivery.leases import Delivery

DEFER_SECONDS = 0.05  # that a job of a model which is not in the batch waits for a worker that has it there
PASSED_OVER_SECONDS = 0.05  # between two looks, while callers at their limit are passed over
POLL_SECONDS = 0.25  # between two looks into a queue that was empty, unless `wake` is called


@dataclass(frozen=True)
class Capacity:
    """What a model's batch can take: so many images, or, while no slot is free, one more job that waits for one.

    deferred: the batch holds other models alone, so a worker that has this one in its batch should take its jobs.
    passed_over: callers that have as many images in the batch as a caller may have.
    """

    images: int
    one_more: bool
    deferred: bool = False
    passed_over: frozenset[str] = frozenset()


class Take(Protocol):
    """Takes jobs off their queues."""

    def __call__(self, model: str, waited: float = 0.0, passed_over: Iterable[str] = ()) -> Delivery | None:
        """The next delivery of a model; None when there is none, or its job has not waited so many seconds.

        passed_over: callers whose jobs are not taken.
        """


def poll_seconds(capacity: Capacity, *, woken: bool) -> float:
    """When to look again into a queue from which nothing was taken.

    A job that is left to other workers, or whose caller is at its limit, may still be there a moment later.
    """
    if woken and capacity.deferred:
        return DEFER_SECONDS
    return PASSED_OVER_SECONDS if capacity.passed_over else POLL_SECONDS
