"""What can go wrong between a program and the server.

ServiceError             base class; `status` is the HTTP status of the answer, or None without an answer
├── ConnectionFailed     no server answers, or not in time
├── RequestRejected      the server rejected the request (4xx); `errors` lists (field, message) of each invalid field
├── ServerBusy           not possible now (429, 503, 504, 507), even after retries; `retry_after` in seconds, if given
├── JobFailed            the job ended without images; `code` (for programs) and `job`
├── JobCanceled          the job was canceled; `job`
├── InvalidWebhook       a webhook is not the server's, was altered, or is too old
└── InvalidResponse      the answer is not one of a denoised server
"""

from __future__ import annotations

from collections.abc import Sequence


class ServiceError(Exception):
    """Base class of all errors of this package. The message is one line for a person."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ConnectionFailed(ServiceError):
    """No server answers, or not in time."""


class RequestRejected(ServiceError):
    """The server rejected the request.

    errors: (field, message) of each invalid field.
    """

    def __init__(self, message: str, status: int, errors: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message, status)
        self.errors = tuple(errors)


class ServerBusy(ServiceError):
    """The server cannot do this now.

    retry_after: seconds; None if the server gave no time.
    """

    def __init__(self, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


class JobFailed(ServiceError):
    """A job ended without images.

    job: the job's id.
    code: the reason for programs: `nan_output`, `timeout`, `worker_lost`, …
    """

    def __init__(self, message: str, job: str, code: str) -> None:
        super().__init__(message)
        self.job = job
        self.code = code


class JobCanceled(ServiceError):
    """A job was canceled.

    job: the job's id.
    """

    def __init__(self, message: str, job: str) -> None:
        super().__init__(message)
        self.job = job


class InvalidWebhook(ServiceError):
    """A webhook is not the server's, was altered, or is too old."""


class InvalidResponse(ServiceError):
    """The answer is not one of a denoised server: most likely another server runs at this URL."""
