"""A job's events as those of the OpenAI Images API: partial images, then the picture."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi.sse import format_sse_event
from PIL import Image
from starlette.concurrency import run_in_threadpool

from app.errors import Problem, Unavailable, of_store
from app.events import PING_SECONDS
from app.generate import check_made
from app.jobs import cancel_job, picture
from app.relay import Closing
from app.services import Services
from app.v1_errors import error_object
from app.v1_objects import Usage
from worker.errors import StoreUnavailable
from worker.job import TERMINAL, JobRecord

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


async def image_events(services: Services, record: JobRecord, partial: int, *, cancel: bool) -> AsyncIterator[bytes]:
    """SSE until the picture is there, or an error that says why not.

    partial: pictures on the way that are shown. cancel: a client that goes away takes its job with it.
    """
    left = True
    try:
        async for sent in _sent(services, record, partial):
            yield sent
        left = False
    except Closing:
        left = False
        yield _failed(Unavailable(f"the server is restarting; job {record.id} goes on", job=record.id))
    except StoreUnavailable as error:
        left = False
        yield _failed(of_store(error))
    except Problem as problem:
        left = False
        yield _failed(problem)
    finally:
        if left and cancel:
            with anyio.CancelScope(shield=True), contextlib.suppress(StoreUnavailable):
                await run_in_threadpool(cancel_job, services, record)


async def _sent(services: Services, record: JobRecord, partial: int) -> AsyncIterator[bytes]:
    """The events of a job that goes well.

    Raises:
        Problem: when it ends without a picture.
    """
    shown = 0
    async for event in services.relay.events(record.id, quiet=PING_SECONDS):
        if event is None:
            yield format_sse_event(comment="ping")
        elif event["type"] == "frame" and shown < partial and event["step"] < event["steps"]:
            data = await run_in_threadpool(_in_format, base64.b64decode(event["data"]), record.request.format)
            yield _event(PARTIAL, record, data, shown)
            shown += 1
        elif event["type"] in TERMINAL:
            ended = await run_in_threadpool(services.store.job, record.id) or record
            check_made(ended)
            data = bytes((await run_in_threadpool(picture, services, ended, 0)).body)
            yield _event(COMPLETED, record, data, None)


def _event(kind: str, record: JobRecord, data: bytes, index: int | None) -> bytes:
    """index: of a partial image, None = the picture."""
    told: dict[str, Any] = {
        "type": kind,
        "b64_json": base64.b64encode(data).decode(),
        "created_at": int(time.time()),
        "size": _size(data),
        "quality": "auto",
        "background": "opaque",
        "output_format": record.request.format,
    }
    told |= {"usage": Usage().model_dump()} if index is None else {"partial_image_index": index}
    return format_sse_event(data_str=json.dumps(told), event=kind)


def _failed(problem: Problem) -> bytes:
    told = {"type": "error", **error_object(problem.status, problem.detail, problem.extra)}
    return format_sse_event(data_str=json.dumps(told), event="error")


def _in_format(frame: bytes, format: str) -> bytes:
    """A frame, which is a PNG, in the format of the picture."""
    if format == "png":
        return frame
    out = io.BytesIO()
    with Image.open(io.BytesIO(frame), formats=["PNG"]) as opened:
        opened.save(out, format, **({"lossless": True} if format == "webp" else {}))
    return out.getvalue()


def _size(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as opened:
        return f"{opened.width}x{opened.height}"
