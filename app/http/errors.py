"""The errors that clients receive: one exception for each kind of refusal.

Problem                     any refusal: status, title, detail
├── BadRequest       400    invalid HTTP, WebSocket handshake or CORS preflight
├── Unauthorized     401    the API key or ticket is missing or wrong
├── Forbidden        403    the caller is not a local program
├── NotFound         404    unknown, expired, or owned by another caller
├── NotAcceptable    406    the client accepts none of the media types that the response could have
├── RequestTimeout   408    the request did not arrive in time
├── Conflict         409    the state of the job does not allow it
├── BodyTooLarge     413    the body exceeds the limit
├── UnsupportedMedia 415    the media type of the body is not supported
├── InvalidRequest   422    names each invalid field, its value and the limit
├── TooBusy          429    the queue is full; has a Retry-After header
├── InternalError    500    a defect of the server
├── FailedJob        500    the job that the client waited for failed
├── Unavailable      503    Redis does not answer, or no worker serves the model
├── WaitTimeout      504    the job did not end in time; names the job
└── StorageFull      507    Redis is out of memory
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from denoised.jobs.errors import JobUnconfirmed, StoreFull, StoreUnavailable
from denoised.jobs.log import REQUEST_ID
from denoised.jobs.results.failures import WHO as RESULT_STORE


class Problem(Exception):
    """A refusal, as RFC 9457 describes it.

    Attributes:
        status: the HTTP status code.
        detail: one sentence for the developer of the client.
        headers: further response headers.
        extra: further members of the problem object.
    """

    status = 400

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The problem object; it has the id of the current request, if there is one."""
        members = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if request_id := REQUEST_ID.get():
            members["request_id"] = request_id
        return {**members, **self.extra}


class BadRequest(Problem):
    status = 400


class Unauthorized(Problem):
    status = 401

    def __init__(self, detail: str, job: str | None = None) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"}, job=job)


class Forbidden(Problem):
    status = 403


class NotFound(Problem):
    status = 404


class NotAcceptable(Problem):
    status = 406

    def __init__(self, available: Sequence[str]) -> None:
        """available: the media types that the response could have."""
        super().__init__(f"Accept allows no type of this response (available: {', '.join(available)})")


class RequestTimeout(Problem):
    status = 408


class Conflict(Problem):
    status = 409


class BodyTooLarge(Problem):
    status = 413


class UnsupportedMedia(Problem):
    status = 415


class InvalidRequest(Problem):
    status = 422

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        """errors: (field, message) pairs; each message names the value and the limit."""
        members = [{"field": field, "message": message} for field, message in errors]
        super().__init__("; ".join(f"{field}: {message}" for field, message in errors), errors=members)


class TooBusy(Problem):
    status = 429

    def __init__(self, detail: str, retry_after: int, **extra: Any) -> None:
        """retry_after: seconds. extra: further members of the problem object."""
        super().__init__(detail, headers={"Retry-After": str(retry_after)}, **extra)


class InternalError(Problem):
    status = 500

    def __init__(self) -> None:
        super().__init__("internal server error; see the server's log for details")


class FailedJob(Problem):
    status = 500


class Unavailable(Problem):
    status = 503


class WaitTimeout(Problem):
    status = 504


class StorageFull(Problem):
    status = 507


def store_problem(error: StoreUnavailable, job: str | None = None) -> Problem:
    """The problem to answer when a command to Redis failed. job: the id of a job that was accepted before."""
    who, why = _refusal(error)
    if job is not None:
        return _unavailable(f"{who} {why}; job {job} was accepted and continues", job)
    if isinstance(error, JobUnconfirmed):
        return _unavailable(f"{who} {why}; job {error.job} may have been accepted, ask for it", error.job)
    if isinstance(error, StoreFull):
        full = "out of memory" if who == "Redis" else "full"
        return StorageFull(f"{who} is {full}; nothing was accepted, jobs accepted earlier continue")
    return Unavailable(f"{who} {why}; nothing was accepted, try again", headers={"Retry-After": "2"})


def _refusal(error: StoreUnavailable) -> tuple[str, str]:
    """Who cannot be used now, and why."""
    text = str(error)
    if text.startswith(RESULT_STORE):
        return RESULT_STORE, "refuses access" if "refuses" in text else "does not answer"
    return "Redis", "refuses commands" if text.startswith("Redis refuses") else "does not answer"


def _unavailable(detail: str, job: str) -> Unavailable:
    return Unavailable(detail, headers={"Retry-After": "2", "Location": f"/jobs/{job}"}, job=job)
