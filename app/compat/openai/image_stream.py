"""The events of a job in the format of the OpenAI Images API: partial images, then the finished picture."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import anyio
from fastapi.sse import format_sse_event
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from denoised.app.compat.openai.errors import error_object
from denoised.app.compat.openai.openai_schemas import Usage
from denoised.app.http.errors import NotFound, Problem, Unauthorized, Unavailable, store_problem
from denoised.app.http.event_stream import QUIET_SECONDS, EventStreamResponse
from denoised.app.job_access.cancellation import cancel_job
from denoised.app.job_access.picture_response import picture_response
from denoised.app.job_access.waiting import require_pictures
from denoised.app.services import Services
from denoised.app.streaming.event_listener import JobGone, KeyRevoked, ServerClosing
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.record import TERMINAL, JobRecord
from denoised.jobs.store.store import Outcome

GENERATION, EDIT = "image_generation", "image_edit"
"""What the names of events begin with."""


class ImageStream(EventStreamResponse):
    """An SSE response that ends with the picture, or with an error event.

    slot: as for `EventStreamResponse`.
    partial_images: the most intermediate pictures to send.
    kind: `GENERATION` or `EDIT`.
    cancel: whether to cancel the job when the client disconnects, even before the first event.
    """

    def __init__(
        self,
        services: Services,
        record: JobRecord,
        slot: AbstractContextManager[None],
        partial_images: int,
        headers: Mapping[str, str],
        kind: str = GENERATION,
        *,
        cancel: bool,
    ) -> None:
        super().__init__(self._stream(), slot, headers)
        self._services = services
        self._record = record
        self._partial_images = partial_images
        self._kind = kind
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._cancel:
                with anyio.CancelScope(shield=True), contextlib.suppress(StoreUnavailable):
                    await run_in_threadpool(cancel_job, self._services, self._record)

    async def _stream(self) -> AsyncIterator[bytes | None]:
        try:
            async for event in self._events():
                yield event
        except ServerClosing:
            job_id = self._record.id
            yield _error_event(Unavailable(f"the server is restarting; job {job_id} continues", job=job_id))
        except JobGone:
            yield _error_event(NotFound(f"job {self._record.id} is no longer stored"))
        except KeyRevoked:
            yield _error_event(Unauthorized("the API key was revoked"))
        except StoreUnavailable as error:
            yield _error_event(store_problem(error, self._record.id))
        except Problem as problem:
            yield _error_event(problem)
        self._cancel = False  # the job has ended, or its picture can still be fetched

    async def _events(self) -> AsyncIterator[bytes | None]:
        """The events of a job that succeeds.

        Raises:
            Problem: when the job ends without a picture.
        """
        sent, format = 0, self._record.request.format
        async for event in self._services.relay.events(self._record.id, quiet=QUIET_SECONDS):
            if event is None:
                yield None
            elif event["type"] == "frame" and sent < self._partial_images and event["step"] < event["steps"]:
                data = await run_in_threadpool(_convert_frame, base64.b64decode(event["data"]), format)
                yield _image_event(f"{self._kind}.partial_image", format, data, {"partial_image_index": sent})
                sent += 1
            elif event["type"] in TERMINAL:
                data = await run_in_threadpool(self._picture)
                yield _image_event(f"{self._kind}.completed", format, data, {"usage": Usage().model_dump()})
            else:
                yield None  # an event that this API does not send

    def _picture(self) -> bytes:
        """The finished picture. Blocking.

        Raises:
            Problem: when there is no picture.
        """
        outcome = self._services.store.outcome(self._record.id, pictures=1) or Outcome(self._record)
        require_pictures(outcome.record)
        return bytes(picture_response(outcome, 0).body)


def _image_event(event_type: str, format: str, data: bytes, extra: Mapping[str, Any]) -> bytes:
    event = {
        "type": event_type,
        "b64_json": base64.b64encode(data).decode(),
        "created_at": int(time.time()),
        "size": _size(data),
        "quality": "auto",
        "background": "opaque",
        "output_format": format,
        **extra,
    }
    return format_sse_event(data_str=json.dumps(event), event=event_type)


def _error_event(problem: Problem) -> bytes:
    return format_sse_event(data_str=json.dumps({"type": "error", **error_object(problem)}), event="error")


def _convert_frame(frame: bytes, format: str) -> bytes:
    """A frame, which is a PNG, in the format of the picture."""
    if format == "png":
        return frame
    out = io.BytesIO()
    with Image.open(io.BytesIO(frame), formats=["PNG"]) as image:
        image.save(out, format, **({"lossless": True} if format == "webp" else {}))
    return out.getvalue()


def _size(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return f"{image.width}x{image.height}"
