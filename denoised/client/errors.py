"""What can go wrong between a program and the service.

ServiceError          every one of them: `status` of the answer, None where there was none
├── Unreachable       no server answers there, or not in time
├── Refused           the service said no (4xx): `errors` has (field, message) of a request that is wrong
├── Busy              not now (429, 503, 504, 507), after all that was tried: `retry_after` seconds, if it said
├── JobFailed         the job ended without its pictures: `code` (for programs), `job`
├── JobCanceled       somebody ended it: `job`
└── Misunderstood     an answer that is none of this service
"""

from __future__ import annotations

from collections.abc import Sequence


class ServiceError(Exception):
    """Base of all errors of this package; the message is one line for a person."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(ServiceError):
    """No server answers."""


class Refused(ServiceError):
    """The service said no. errors: (field, message) of each field that is wrong."""

    def __init__(self, message: str, status: int, errors: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message, status)
        self.errors = tuple(errors)


class Busy(ServiceError):
    """The service cannot now. retry_after: seconds, None where it did not say."""

    def __init__(self, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


class JobFailed(ServiceError):
    """A job ended without its pictures. code: `nan_output`, `timeout`, `worker_lost`, …; job: its id."""

    def __init__(self, message: str, job: str, code: str) -> None:
        super().__init__(message)
        self.job = job
        self.code = code


class JobCanceled(ServiceError):
    """A job was ended by somebody. job: its id."""

    def __init__(self, message: str, job: str) -> None:
        super().__init__(message)
        self.job = job


class Misunderstood(ServiceError):
    """The answer is none of this service: another server, most likely."""
