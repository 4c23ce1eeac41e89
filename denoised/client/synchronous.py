"""`Client`: the service for programs that wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from itertools import islice
from typing import Self, TypeVar, Unpack

import httpx
from PIL import Image

from denoised.client.errors import Busy, ServiceError
from denoised.client.exchange import (
    Call,
    Exchange,
    Flow,
    Following,
    OnWait,
    Outcome,
    place,
    succeeded,
)
from denoised.client.results import Ended, Event, Fleet, Job, JobImage, Model, Status, Verification, opened
from denoised.client.signature import lists_fields
from denoised.jobs.request import RequestFields

T = TypeVar("T")


class Client:
    """Talks to one server. Use it as a context manager, or `close` it. Threads may share one.

    url: of the server; else what DENOISED_URL says, else http://127.0.0.1:8000. key: an API key, where it wants one;
    else DENOISED_API_KEY. timeout: seconds until an answer begins. retry_for: seconds that a call is tried again for
    while the server is busy (429), restarting (503) or gone, as its Retry-After says; 0 = not at all. No try makes a
    second job. on_wait(seconds, why): told before each such pause.

    Raises:
        ServiceError: from every method; `denoised.client.errors` draws the tree.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        timeout: float = 30.0,
        retry_for: float = 60.0,
        on_wait: OnWait | None = None,
    ) -> None:
        url, headers = place(url, key)
        self._exchange = Exchange(url, retry_for, on_wait)
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        except httpx.InvalidURL as error:
            raise ServiceError(f"the URL {url!r} cannot be read ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    @lists_fields
    def generate(self, label: str | int | None = None, /, **fields: Unpack[RequestFields]) -> list[Image.Image]:
        """Generate pictures; image k uses seed + k. If this call is interrupted, the job is canceled.

        The `text["parameters"]` of a PNG is the request that makes it again.

        Raises:
            JobFailed, JobCanceled: when the job makes no pictures.
        """
        job = self.submit(label, **fields)
        try:
            ended = succeeded(self.wait(job.id))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            with contextlib.suppress(ServiceError):
                self.cancel(job.id)
            raise
        return [opened(self.image(image)) for image in ended.images]

    @lists_fields
    def stream(self, label: str | int | None = None, /, **fields: Unpack[RequestFields]) -> Iterator[Event]:
        """`submit`, then `events`: the events of a new job until it ends. preview_every=k adds frames."""
        yield from self.events(self.submit(label, **fields).id)

    @lists_fields
    def submit(
        self, label: str | int | None = None, /, *, idempotency_key: str | None = None, **fields: Unpack[RequestFields]
    ) -> Job:
        """`POST /generate`: queue a job.

        idempotency_key: a second call with the same key and request within 24 h returns the same job; generated if
        left out.
        """
        return self._run(self._exchange.submit(label, fields, idempotency_key))

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """A job's events, those with seq > `after`, until its end; a broken connection is taken up where it broke."""
        following = Following(self._exchange, job_id, after)
        while not following.over:
            broken: Exception | None = None
            try:
                yield from self._lines(following)
            except (httpx.TransportError, Busy) as error:
                broken = error
            if not following.over:
                time.sleep(following.pause(broken))

    def wait(self, job_id: str) -> Job:
        """The job when it is over, however it ended."""
        for event in self.events(job_id):
            if isinstance(event, Ended):
                return event.result
        return self.job(job_id)

    def job(self, job_id: str) -> Job:
        """`GET /jobs/{id}`: the job as it stands."""
        return self._run(self._exchange.job(job_id))

    def jobs(self, limit: int | None = None, status: Status | None = None) -> Iterator[Job]:
        """Your jobs, newest first, page by page; at most `limit` of them, None = all that are kept. status: theirs."""
        return islice(self._all_jobs(limit, status), limit)

    def cancel(self, job_id: str) -> Job:
        """`DELETE /jobs/{id}`: the job, canceled; repeating is harmless.

        Raises:
            Refused: 409 when it had already succeeded or failed, 404 when it is unknown.
        """
        return self._run(self._exchange.cancel(job_id))

    def image(self, image: JobImage | str) -> bytes:
        """The bytes of a picture; image: one of `Job.images`, or the `url` of one."""
        return self._run(self._exchange.bytes_at(image if isinstance(image, str) else image.url))

    def film(self, job_id: str, format: str = "webp", kind: str | None = None) -> bytes:
        """The frames that a job kept as one animation. format: webp, gif or apng. kind: x0 or xt.

        Raises:
            Refused: 409 when it kept none (preview_every).
        """
        return self._run(self._exchange.film(job_id, format, kind))

    def verify(self, picture: bytes) -> Verification:
        """`POST /verify`, for as long as it takes: makes a PNG again and compares the bytes."""
        return self._run(self._exchange.verify(picture))

    def models(self) -> list[Model]:
        """The models that live workers serve; the first is the default."""
        return self._run(self._exchange.models())

    def workers(self) -> Fleet:
        """`GET /workers`: what waits, and what the workers do."""
        return self._run(self._exchange.workers())

    def _all_jobs(self, limit: int | None, status: Status | None) -> Iterator[Job]:
        cursor: str | None = None
        while True:
            page, cursor = self._run(self._exchange.page(cursor, limit or 100, status))
            yield from page
            if cursor is None:
                return

    def _lines(self, following: Following) -> Iterator[Event]:
        call = following.call
        with self._http.stream(call.method, call.path, **call.arguments()) as response:
            if response.is_error:
                response.read()
            following.begin(response)
            for line in response.iter_lines():
                event = following.take(line)
                if event is not None:
                    yield event

    def _run(self, flow: Flow[T]) -> T:
        """Drive a flow: make its calls, keep its pauses."""
        try:
            step = next(flow)
            while True:
                if isinstance(step, Call):
                    step = flow.send(self._send(step))
                else:
                    time.sleep(step.seconds)
                    step = next(flow)
        except StopIteration as done:
            value: T = done.value
            return value

    def _send(self, call: Call) -> Outcome:
        try:
            return self._http.request(call.method, call.path, **call.arguments())
        except httpx.TransportError as error:
            return error
