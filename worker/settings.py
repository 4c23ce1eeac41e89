"""How a worker behaves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerSettings:
    """max_batch: images in one evaluation.
    lease: seconds after which the jobs of a silent worker go to another.
    job_timeout: seconds that the evaluations of one job may take together.
    """

    max_batch: int = 16
    lease: float = 10.0
    job_timeout: float = 600.0
