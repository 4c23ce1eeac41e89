"""The events of a job, over a WebSocket or as SSE; and `WS /generate`, which submits a job and sends its events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.sse import format_sse_event
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from denoised.app.admission.submission import submit
from denoised.app.http.errors import BodyTooLarge, InvalidRequest, NotFound, Problem, store_problem
from denoised.app.http.event_stream import QUIET_SECONDS, EventStreamResponse
from denoised.app.http.requests.json_body import decode_large_json
from denoised.app.http.requests.request_body import GenerateRequest
from denoised.app.http.schemas import ProblemObject
from denoised.app.http.validation_errors import describe_unreadable_body, describe_validation_errors, format_value
from denoised.app.job_access.lookup import PathJob
from denoised.app.job_access.waiting import wait_for_disconnect
from denoised.app.services import Owner, Services, Serving
from denoised.app.streaming.event_listener import JobGone, KeyRevoked, ServerClosing
from denoised.jobs.errors import StoreUnavailable

router = APIRouter(tags=["events"])

FIRST_MESSAGE_SECONDS = 30.0
SEQ = re.compile(r"[0-9]{1,100}")  # a Last-Event-ID of ours
RECONNECT_MS = 1000  # until browsers reconnect to an SSE stream
# WebSocket close codes (RFC 6455 and the IANA registry).
NORMAL_CLOSURE, POLICY_VIOLATION, TOO_BIG, UNEXPECTED, SERVICE_RESTART, TRY_AGAIN_LATER = (
    1000,
    1008,
    1009,
    1011,
    1012,
    1013,
)
GONE = "the job is no longer stored"
REVOKED = "the API key was revoked"
TEMPORARY_STATUSES = (429, 503, 507)

After = Annotated[int, Query(ge=0, description="only events with a higher seq")]

_SSE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {}},
        "description": "One JSON object per event; `id` is its seq. The `sigma` of a frame is σ in x_t = α·x_0 + σ·ε "
        "with α² + σ² = 1; the request's noise levels (`sigmas`, `sigma_min`, …) are σ/α.",
    },
    429: {"model": ProblemObject, "description": "The API key has too many streams open; see `Retry-After`."},
    204: {"description": "The job has ended, and no event follows the given seq."},
    404: {"model": ProblemObject, "description": "Unknown, expired, or another caller's."},
}


@router.get("/jobs/{job_id}/events", responses=_SSE, response_class=Response, summary="Events (SSE)")
async def stream(
    record: PathJob,
    services: Serving,
    owner: Owner,
    after: After = 0,
    last_event_id: Annotated[
        str,
        Header(
            alias="Last-Event-ID",
            description="the same as `after`; browsers send it. Any id but a seq is ignored",
        ),
    ] = "",
) -> Response:
    """All events from the start of the job, or after `Last-Event-ID`, until its end. The same path accepts a
    WebSocket."""
    # An id of another server's stream must not end an EventSource, so it is not an error.
    seq = int(last_event_id) if SEQ.fullmatch(last_event_id) else after
    if record.terminal and seq >= await run_in_threadpool(services.store.events.last_seq, record.id):
        return Response(status_code=204)
    return EventStreamResponse(_sse_events(services, record.id, seq), services.streams.open(owner))


async def _sse_events(services: Services, job_id: str, after: int) -> AsyncIterator[bytes | None]:
    # On shutdown, or while Redis is away, the stream simply ends: browsers reconnect with Last-Event-ID. If the job is
    # gone, they then get a 404.
    with contextlib.suppress(ServerClosing, StoreUnavailable):
        yield format_sse_event(retry=RECONNECT_MS)
        try:
            async for event in services.relay.events(job_id, after, quiet=QUIET_SECONDS):
                yield None if event is None else _encode(event)
        except JobGone:
            yield format_sse_event(comment=GONE)
        except KeyRevoked:
            yield format_sse_event(comment=REVOKED)


def _encode(event: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(event), event=event["type"], id=str(event["seq"]))


@router.websocket("/jobs/{job_id}/events")
async def socket(websocket: WebSocket, record: PathJob, services: Serving, owner: Owner, after: After = 0) -> None:
    """The same events, one text message each. The socket closes with 1000 after the last."""
    with services.streams.open(owner):
        await websocket.accept()
        await _send_events(websocket, services, record.id, after)


@router.websocket("/generate")
async def generate_socket(websocket: WebSocket, services: Serving, owner: Owner) -> None:
    """The first message is a `POST /generate` body; the job's events follow. Closing the socket does not cancel it.

    An invalid body is answered with its problem object and close code 1008.
    """
    with services.streams.open(owner):
        await websocket.accept()
        await _generate(websocket, services, owner)


async def _generate(websocket: WebSocket, services: Services, owner: str) -> None:
    try:
        fields = (await _first_message(websocket)).fields()
        record, _ = await run_in_threadpool(submit, services, fields, owner, watched=True)
    except WebSocketDisconnect:
        return
    except StoreUnavailable as error:
        await _close_with_problem(websocket, store_problem(error))
    except Problem as problem:
        await _close_with_problem(websocket, problem)
    else:
        await _send_events(websocket, services, record.id, 0)


@router.websocket("/{path:path}")
async def unknown_socket(websocket: WebSocket, path: str) -> None:
    """Deny a WebSocket at any other path with a 404, as requests are."""
    raise NotFound(f"no WebSocket at {format_value('/' + path)}")


async def _close_with_problem(websocket: WebSocket, problem: Problem) -> None:
    code = TRY_AGAIN_LATER if problem.status in TEMPORARY_STATUSES else POLICY_VIOLATION
    if isinstance(problem, BodyTooLarge):
        code = TOO_BIG
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await websocket.send_text(json.dumps(problem.body()))
        await websocket.close(code, problem.detail[:100])


async def _first_message(websocket: WebSocket) -> GenerateRequest:
    try:
        message = await asyncio.wait_for(websocket.receive(), FIRST_MESSAGE_SECONDS)
    except TimeoutError as error:
        raise InvalidRequest([("body", f"no message arrived within {FIRST_MESSAGE_SECONDS:g} s")]) from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", NORMAL_CLOSURE))
    text = message.get("text")
    if text is None:
        raise InvalidRequest([("body", "a binary message was given (allowed: JSON text)")])
    try:
        return GenerateRequest.model_validate(await run_in_threadpool(decode_large_json, text))
    except ValidationError as error:
        fields = GenerateRequest.model_fields
        raise InvalidRequest(describe_validation_errors(error.errors(), fields)) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest([("body", describe_unreadable_body(error))]) from error


async def _send_events(websocket: WebSocket, services: Services, job_id: str, after: int) -> None:
    """Send events until the job ends or the client disconnects; messages of the client are discarded."""
    sending = asyncio.ensure_future(_send_until_end(websocket, services, job_id, after))
    disconnect = asyncio.ensure_future(wait_for_disconnect(websocket))
    try:
        await asyncio.wait({sending, disconnect}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, disconnect):
            task.cancel()
        await asyncio.gather(sending, disconnect, return_exceptions=True)


async def _send_until_end(websocket: WebSocket, services: Services, job_id: str, after: int) -> None:
    # uvicorn's WebSocket protocol pings quiet sockets (see `app.launch.http_server`).
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        try:
            async for event in services.relay.events(job_id, after):
                await websocket.send_text(json.dumps(event))
            await websocket.close(NORMAL_CLOSURE)
        except JobGone:
            await websocket.close(UNEXPECTED, GONE)
        except KeyRevoked:
            await websocket.close(POLICY_VIOLATION, REVOKED)
        except ServerClosing:
            await websocket.close(SERVICE_RESTART, "the server is restarting")
        except StoreUnavailable:
            await websocket.close(TRY_AGAIN_LATER, "Redis does not answer")
