"""`AsyncClient`: the client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Self, TypeVar, Unpack

import httpx
from PIL import Image

from denoised.client.api_call import ApiCall, Flow, Outcome
from denoised.client.configuration import resolve_server
from denoised.client.errors import ServerBusy, ServiceError
from denoised.client.event_stream import EventStream
from denoised.client.events import Event, JobFinished
from denoised.client.exchange import Exchange
from denoised.client.fleet import FleetStatus
from denoised.client.images import decode_image
from denoised.client.job import Job, JobArray, JobImage, Status, require_success
from denoised.client.model import Model
from denoised.client.model_order import ModelOrder
from denoised.client.retries import OnWait, RetryPolicy
from denoised.client.signature import lists_fields, lists_fields_of
from denoised.client.usage import KeyUsage
from denoised.client.verification import VerificationResult
from denoised.client.webhook import WebhookDelivery
from denoised.jobs.request import PictureSource, RequestFields
from denoised.jobs.task_request import TASK_FIELDS, LikelihoodFields, NoiseFields, ScoreFields

T = TypeVar("T")


class AsyncClient:
    """A client of one server, with the methods of `Client` as coroutines. Tasks may share a client.

    Raises:
        ServiceError: from every method; `denoised.client.errors` shows the subclasses.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        timeout: float = 30.0,
        retry_for: float = 60.0,
        on_wait: OnWait | None = None,
    ) -> None:
        url, headers = resolve_server(url, key)
        self._retries = RetryPolicy(url, retry_for, on_wait)
        self._exchange = Exchange(self._retries)
        try:
            self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        except httpx.InvalidURL as error:
            raise ServiceError(f"the URL {url!r} is not valid ({error})") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @lists_fields
    async def generate(self, label: str | int | None = None, /, **fields: Unpack[RequestFields]) -> list[Image.Image]:
        """As `Client.generate`. If the task is canceled, the job is canceled."""
        job = await self.submit(label, **fields)
        finished = await self._completed(job)
        return [decode_image(await self.image(image)) for image in finished.images]

    @lists_fields
    async def stream(
        self, label: str | int | None = None, /, **fields: Unpack[RequestFields]
    ) -> AsyncGenerator[Event, None]:
        """As `Client.stream`."""
        job = await self.submit(label, **fields)
        async with contextlib.aclosing(self.events(job.id)) as events:
            async for event in events:
                yield event

    @lists_fields
    async def submit(
        self, label: str | int | None = None, /, *, idempotency_key: str | None = None, **fields: Unpack[RequestFields]
    ) -> Job:
        """As `Client.submit`."""
        return await self._run(self._exchange.submit(label, fields, idempotency_key))

    async def events(self, job_id: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """As `Client.events`. If you leave the loop early, close the generator (`contextlib.aclosing`): it holds a
        connection."""
        stream = EventStream(self._retries, job_id, after)
        while not stream.finished:
            cause: Exception | None = None
            try:
                async with contextlib.aclosing(self._lines(stream)) as lines:
                    async for event in lines:
                        yield event
            except (httpx.TransportError, ServerBusy) as error:
                cause = error
            if not stream.finished:
                await asyncio.sleep(stream.reconnect_pause(cause))

    async def wait(self, job_id: str) -> Job:
        """As `Client.wait`."""
        async with contextlib.aclosing(self.events(job_id)) as events:
            async for event in events:
                if isinstance(event, JobFinished):
                    return event.result
        return await self.job(job_id)

    async def job(self, job_id: str) -> Job:
        """As `Client.job`."""
        return await self._run(self._exchange.job(job_id))

    async def jobs(self, limit: int | None = None, status: Status | None = None) -> AsyncGenerator[Job, None]:
        """As `Client.jobs`."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            page, cursor = await self._run(self._exchange.page(cursor, left or 100, status))
            for job in page:
                yield job
            if cursor is None:
                return
            left = None if left is None else left - len(page)

    async def cancel(self, job_id: str) -> Job:
        """As `Client.cancel`."""
        return await self._run(self._exchange.cancel(job_id))

    async def image(self, image: JobImage | str) -> bytes:
        """As `Client.image`."""
        return await self._run(self._exchange.download(image if isinstance(image, str) else image.url))

    async def animation(self, job_id: str, format: str = "webp", kind: str | None = None) -> bytes:
        """As `Client.animation`."""
        return await self._run(self._exchange.animation(job_id, format, kind))

    async def verify(
        self,
        picture: bytes,
        image: PictureSource | None = None,
        mask: PictureSource | None = None,
        controls: Sequence[PictureSource] = (),
    ) -> VerificationResult:
        """As `Client.verify`."""
        return await self._run(self._exchange.verify(picture, image, mask, controls))

    @lists_fields_of(TASK_FIELDS["noise"])
    async def noise(self, image: PictureSource, /, **fields: Unpack[NoiseFields]) -> Job:
        """As `Client.noise`."""
        return await self._completed(await self._run(self._exchange.task("noise", image, fields)))

    @lists_fields_of(TASK_FIELDS["score"])
    async def score(self, image: PictureSource | None = None, /, **fields: Unpack[ScoreFields]) -> Job:
        """As `Client.score`."""
        return await self._completed(await self._run(self._exchange.task("score", image, fields)))

    @lists_fields_of(TASK_FIELDS["likelihood"])
    async def likelihood(self, image: PictureSource, /, **fields: Unpack[LikelihoodFields]) -> Job:
        """As `Client.likelihood`."""
        return await self._completed(await self._run(self._exchange.task("likelihood", image, fields)))

    async def array(self, array: JobArray) -> bytes:
        """As `Client.array`."""
        return await self._run(self._exchange.download(array.url))

    async def models(self) -> list[Model]:
        """As `Client.models`."""
        return await self._run(self._exchange.models())

    async def add_model(self, name: str) -> ModelOrder:
        """As `Client.add_model`."""
        return await self._run(self._exchange.order_model("PUT", name))

    async def remove_model(self, name: str) -> ModelOrder:
        """As `Client.remove_model`."""
        return await self._run(self._exchange.order_model("DELETE", name))

    async def reload_model(self, name: str) -> ModelOrder:
        """As `Client.reload_model`."""
        return await self._run(self._exchange.order_model("POST", name, "/reload"))

    async def workers(self) -> FleetStatus:
        """As `Client.workers`."""
        return await self._run(self._exchange.workers())

    async def usage(self) -> KeyUsage:
        """As `Client.usage`."""
        return await self._run(self._exchange.usage())

    async def usage_of_all_keys(self) -> list[KeyUsage]:
        """As `Client.usage_of_all_keys`."""
        return await self._run(self._exchange.usage_of_all_keys())

    async def webhook(self, job_id: str) -> WebhookDelivery:
        """As `Client.webhook`."""
        return await self._run(self._exchange.webhook(job_id))

    async def webhook_secrets(self) -> list[str]:
        """As `Client.webhook_secrets`."""
        return await self._run(self._exchange.webhook_secrets())

    async def _completed(self, job: Job) -> Job:
        """A job once it has succeeded; it is canceled if the wait for it is interrupted."""
        try:
            return require_success(await self.wait(job.id))
        except (asyncio.CancelledError, GeneratorExit):
            with contextlib.suppress(ServiceError):
                await self.cancel(job.id)
            raise

    async def _lines(self, stream: EventStream) -> AsyncGenerator[Event, None]:
        call = stream.call
        async with self._http.stream(call.method, call.path, **call.arguments()) as response:
            if response.is_error:
                await response.aread()
            stream.open(response)
            async for line in response.aiter_lines():
                event = stream.parse(line)
                if event is not None:
                    yield event

    async def _run(self, flow: Flow[T]) -> T:
        """Drive a flow: send its calls, sleep its pauses."""
        try:
            step = next(flow)
            while True:
                if isinstance(step, ApiCall):
                    step = flow.send(await self._send(step))
                else:
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
        except StopIteration as done:
            value: T = done.value
            return value

    async def _send(self, call: ApiCall) -> Outcome:
        try:
            return await self._http.request(call.method, call.path, **call.arguments())
        except httpx.TransportError as error:
            return error
