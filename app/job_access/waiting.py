"""Waiting for the end of a job while its client stays connected."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.websockets import WebSocket

from denoised.app.http.errors import (
    Conflict,
    FailedJob,
    NotFound,
    Unauthorized,
    Unavailable,
    WaitTimeout,
    store_problem,
)
from denoised.app.http.headers import job_location
from denoised.app.http.requests.negotiation import preference_applied
from denoised.app.job_access.cancellation import cancel_job
from denoised.app.services import Services
from denoised.app.streaming.event_listener import KeyRevoked, ServerClosing
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.record import JobRecord
from denoised.jobs.store.store import Outcome

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected; it appears only in the log


async def wait_for_job(
    services: Services, request: Request, record: JobRecord, wait: float | None, *, pictures: int, cancel: bool
) -> Outcome | None:
    """The ended job with its first `pictures` pictures; None when the client disconnected before the end.

    wait: seconds; None = the longest wait that the settings allow.
    cancel: whether to cancel the job when the client disconnects.

    Raises:
        NotFound: when the job is no longer stored.
        WaitTimeout: when the job has not ended in time.
        Unauthorized: when the API key of the request was revoked meanwhile.
        Unavailable: when the server is shutting down, or Redis does not answer.
    """
    seconds = services.settings.max_wait if wait is None else wait
    end = services.relay.wait_for_end(record.id, 0.0 if record.terminal else seconds, pictures)
    try:
        ended, outcome = await _unless_disconnected(request, asyncio.ensure_future(end))
    except ServerClosing as error:
        detail = f"the server is restarting; job {record.id} continues"
        raise Unavailable(detail, headers={"Retry-After": "2"}, job=record.id) from error
    except KeyRevoked as error:
        raise revoked_while_waiting(record.id) from error
    except StoreUnavailable as error:
        raise store_problem(error, record.id) from error
    if not ended:
        if cancel:
            await run_in_threadpool(cancel_job, services, record)
        return None
    if outcome is None:
        raise job_gone(record.id)
    if not outcome.record.terminal:
        location = job_location(record)
        detail = f"job {record.id} has not ended after {seconds:g} s; it continues, see {location['Location']}"
        raise WaitTimeout(detail, headers={**location, **preference_applied(wait)}, job=record.id)
    return outcome


def job_gone(job_id: str) -> NotFound:
    """The problem of a job that was accepted and is no longer stored."""
    return NotFound(f"job {job_id} is no longer stored: it has expired, or the store was emptied", job=job_id)


def revoked_while_waiting(job_id: str) -> Unauthorized:
    """The problem of a client whose API key was revoked while it waited for a job."""
    return Unauthorized(f"the API key was revoked; job {job_id} continues", job=job_id)


def require_pictures(record: JobRecord) -> None:
    """Check that an ended job has made its pictures.

    Raises:
        Conflict: when it was canceled.
        FailedJob: when it failed.
    """
    if record.status == "canceled":
        raise Conflict(f"job {record.id} was canceled", job=record.id)
    if record.status == "failed":
        error = dict(record.error or {})
        raise FailedJob(f"job {record.id} failed: {error.get('message')}", job=record.id, code=error.get("code"))


async def wait_for_disconnect(connection: Request | WebSocket) -> None:
    """Return when the client has disconnected; other messages of the client are discarded."""
    while not (await connection.receive())["type"].endswith(".disconnect"):
        pass


async def _unless_disconnected(request: Request, end: asyncio.Future[Outcome | None]) -> tuple[bool, Outcome | None]:
    """Whether the job's end (or its timeout) came before the client disconnected, and its outcome."""
    futures: list[asyncio.Future[Any]] = [end, asyncio.ensure_future(wait_for_disconnect(request))]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        return (True, end.result()) if end.done() else (False, None)
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
