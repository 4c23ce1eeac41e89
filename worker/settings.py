"""How a worker behaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class WorkerSettings:
    """max_batch: images in one evaluation, of models that `slots` does not name.
    slots: images in one evaluation, by model.
    memory_bytes: that one evaluation may take; None is no limit.
    lease: seconds after which the jobs of a silent worker go to another.
    job_timeout: seconds that the evaluations and the decoding of one job may take together.
    """

    max_batch: int = 16
    slots: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int | None = None
    lease: float = 10.0
    job_timeout: float = 600.0
