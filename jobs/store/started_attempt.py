"""What a worker gets when it starts an attempt at a job."""

from __future__ import annotations

from dataclasses import dataclass

from denoised.jobs.record import JobRecord


@dataclass(frozen=True)
class StartedAttempt:
    """An attempt that a worker has started.

    resume_point: where an earlier attempt was saved, None when there is no such point.
    quarantined: it is the job's last attempt; it must be alone in its worker, and call `Attempts.start_alone` then.
    waited: seconds since the job was accepted, by Redis' clock.
    """

    record: JobRecord
    resume_point: bytes | None
    quarantined: bool = False
    waited: float = 0.0
