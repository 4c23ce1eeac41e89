"""A job's events as those of the OpenAI Images API: partial images, then the picture."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
from fastapi.sse import format_sse_event
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from denoised.app.compat.openai.errors import error_object
from denoised.app.compat.openai.objects import Usage
from denoised.app.http.errors import Problem, Unavailable, of_store
from denoised.app.routes.events import PING_SECONDS
from denoised.app.routes.generate import check_made
from denoised.app.routes.jobs import cancel_job, picture_of
from denoised.app.services import Services
from denoised.app.streaming.relay import Closing
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.record import TERMINAL, JobRecord
from denoised.jobs.store import Outcome

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


class ImageStream(StreamingResponse):
    """SSE until the picture is there, or an error that says why not.

    partial: pictures on the way that are shown. cancel: a client that goes away takes its job with it, also one that
    has gone before anything was sent.
    """

    def __init__(
        self, services: Services, record: JobRecord, partial: int, headers: Mapping[str, str], *, cancel: bool
    ) -> None:
        super().__init__(self._events(), media_type="text/event-stream", headers=headers)
        self._services = services
        self._record = record
        self._partial = partial
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._cancel:
                with anyio.CancelScope(shield=True), contextlib.suppress(StoreUnavailable):
                    await run_in_threadpool(cancel_job, self._services, self._record)

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for sent in self._sent():
                yield sent
        except Closing:
            yield _failed(Unavailable(f"the server is restarting; job {self._record.id} goes on", job=self._record.id))
        except StoreUnavailable as error:
            yield _failed(of_store(error))
        except Problem as problem:
            yield _failed(problem)
        self._cancel = False  # it is over, or others may still fetch it

    async def _sent(self) -> AsyncIterator[bytes]:
        """The events of a job that goes well.

        Raises:
            Problem: when it ends without a picture.
        """
        shown, format = 0, self._record.request.format
        async for event in self._services.relay.events(self._record.id, quiet=PING_SECONDS):
            if event is None:
                yield format_sse_event(comment="ping")
            elif event["type"] == "frame" and shown < self._partial and event["step"] < event["steps"]:
                data = await run_in_threadpool(_in_format, base64.b64decode(event["data"]), format)
                yield _event(PARTIAL, format, data, {"partial_image_index": shown})
                shown += 1
            elif event["type"] in TERMINAL:
                data = await run_in_threadpool(self._picture)
                yield _event(COMPLETED, format, data, {"usage": Usage().model_dump()})

    def _picture(self) -> bytes:
        """Blocking.

        Raises:
            Problem: when there is none.
        """
        ended = self._services.store.outcome(self._record.id, pictures=1) or Outcome(self._record)
        check_made(ended.record)
        return bytes(picture_of(ended, 0).body)


def _event(kind: str, format: str, data: bytes, more: Mapping[str, Any]) -> bytes:
    told = {
        "type": kind,
        "b64_json": base64.b64encode(data).decode(),
        "created_at": int(time.time()),
        "size": _size(data),
        "quality": "auto",
        "background": "opaque",
        "output_format": format,
        **more,
    }
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
