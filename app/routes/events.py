"""The events of a job, over a WebSocket or as SSE; and `WS /generate`, which posts and listens in one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.sse import format_sse_event
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from denoised.app.admission.submission import submit
from denoised.app.http.auth import refuse
from denoised.app.http.errors import InvalidRequest, NotFound, Problem, of_store, readable, shown, unreadable
from denoised.app.http.request_body import GenerateRequest
from denoised.app.http.schemas import ProblemObject
from denoised.app.routes.jobs import NamedJob, find
from denoised.app.services import Owner, Services, Serving
from denoised.app.streaming.relay import Closing
from denoised.jobs.errors import StoreUnavailable

router = APIRouter(tags=["events"])

PING_SECONDS = 15.0
FIRST_MESSAGE_SECONDS = 30.0
# WebSocket close codes (RFC 6455 and the IANA registry).
DONE, POLICY, RESTART, TRY_LATER = 1000, 1008, 1012, 1013
MAX_MESSAGE = 1024 * 1024

_SSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "One JSON object an event; `id` is its seq."},
    204: {"description": "Nothing comes after the given seq: the job is over."},
    404: {"model": ProblemObject, "description": "Unknown, expired, or another caller's."},
}


@router.get("/jobs/{job_id}/events", responses=_SSE, response_class=Response, summary="Events (SSE)")
async def stream(
    record: NamedJob,
    services: Serving,
    after: Annotated[int, Query(ge=0, description="only events with a higher seq")] = 0,
    last_event_id: Annotated[
        int | None, Header(alias="Last-Event-ID", ge=0, description="the same, as browsers send it")
    ] = None,
) -> Response:
    """Everything from the start of the job, or from after `Last-Event-ID`, until its end. The same
    path takes a WebSocket."""
    seq = last_event_id if last_event_id is not None else after
    if record.terminal and seq >= await run_in_threadpool(services.store.last_seq, record.id):
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_sse(services, record.id, seq), media_type="text/event-stream", headers=headers)


async def _sse(services: Services, job_id: str, after: int) -> AsyncIterator[bytes]:
    # On shutdown, or while Redis is away, the stream just ends: browsers reconnect with Last-Event-ID.
    with contextlib.suppress(Closing, StoreUnavailable):
        yield format_sse_event(retry=1000)
        async for event in services.relay.events(job_id, after, quiet=PING_SECONDS):
            if event is None:
                yield format_sse_event(comment="ping")
            else:
                yield format_sse_event(data_str=json.dumps(event), event=event["type"], id=str(event["seq"]))


@router.websocket("/jobs/{job_id}/events")
async def socket(websocket: WebSocket, job_id: str, services: Serving, owner: Owner) -> None:
    """The same events, one text message each; closes with 1000 after the last."""
    try:
        await run_in_threadpool(find, services, job_id, owner)
        after = _after(websocket.query_params.get("after", "0"))
    except (Problem, StoreUnavailable) as error:
        problem = error if isinstance(error, Problem) else of_store(error)
        await refuse(problem, websocket.scope, websocket.receive, websocket.send)
        return
    await websocket.accept()
    await _send_events(websocket, services, job_id, after)


@router.websocket("/generate")
async def generate_socket(websocket: WebSocket, services: Serving, owner: Owner) -> None:
    """The first message is a `POST /generate` body; the job's events follow. Closing cancels nothing.

    A body that is refused is answered with its problem object, then 1008.
    """
    await websocket.accept()
    try:
        fields = (await _first_message(websocket)).fields()
        record, _ = await run_in_threadpool(submit, services, fields, owner, watched=True)
    except WebSocketDisconnect:
        return
    except (Problem, StoreUnavailable) as error:
        problem = error if isinstance(error, Problem) else of_store(error)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await websocket.send_text(json.dumps(problem.body()))
            await websocket.close(TRY_LATER if problem.status in (429, 503, 507) else POLICY, problem.detail[:100])
        return
    await _send_events(websocket, services, record.id, 0)


@router.websocket("/{path:path}")
async def no_socket(websocket: WebSocket, path: str) -> None:
    """Sockets to anywhere else are refused as requests are: with a 404."""
    problem = NotFound(f"there is no socket at {shown('/' + path)}")
    await refuse(problem, websocket.scope, websocket.receive, websocket.send)


async def _first_message(websocket: WebSocket) -> GenerateRequest:
    try:
        message = await asyncio.wait_for(websocket.receive(), FIRST_MESSAGE_SECONDS)
    except TimeoutError as error:
        raise InvalidRequest([("body", f"no message came within {FIRST_MESSAGE_SECONDS:g} s")]) from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", DONE))
    text = message.get("text")
    if text is None:
        raise InvalidRequest([("body", "a binary message was given (allowed: JSON text)")])
    try:
        return GenerateRequest.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            raise InvalidRequest(readable(error.errors(), GenerateRequest.model_fields)) from error
        raise InvalidRequest([("body", unreadable(error))]) from error


async def _send_events(websocket: WebSocket, services: Services, job_id: str, after: int) -> None:
    """Events until the job's end or the client's; whatever the client sends meanwhile is not read."""
    sending = asyncio.ensure_future(_send_all(websocket, services, job_id, after))
    leaving = asyncio.ensure_future(_gone(websocket))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def _send_all(websocket: WebSocket, services: Services, job_id: str, after: int) -> None:
    # Quiet sockets are pinged by the server's own protocol (see app.server).
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        try:
            async for event in services.relay.events(job_id, after):
                await websocket.send_text(json.dumps(event))
            await websocket.close(DONE)
        except Closing:
            await websocket.close(RESTART, "the server is restarting")
        except StoreUnavailable:
            await websocket.close(TRY_LATER, "Redis does not answer")


async def _gone(websocket: WebSocket) -> None:
    """Returns when the client has closed the socket; what it says is not listened to."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


def _after(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise InvalidRequest([("after", f"{value[:40]!r} was given (allowed: a seq, 0 or more)")])
    return int(value)
