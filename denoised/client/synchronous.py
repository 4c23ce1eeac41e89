"""`Client`: the blocking client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from itertools import islice
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


class Client:
    """A client of one server. Use it as a context manager, or call `close`. Threads may share a client.

    url: the server; default DENOISED_URL, else http://127.0.0.1:8000.
    key: an API key; default DENOISED_API_KEY.
    timeout: seconds until an answer must begin.
    retry_for: longest total wait of one call, in seconds, while the server is busy (429), restarting (503) or does not
        answer any more; 0 = never retry. A retry never creates a second job.
    on_wait: called as on_wait(seconds, error) before each wait.

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
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        except httpx.InvalidURL as error:
            raise ServiceError(f"the URL {url!r} is not valid ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @lists_fields
    def generate(self, label: str | int | None = None, /, **fields: Unpack[RequestFields]) -> list[Image.Image]:
        """Generate images and wait for them. Image k is generated from seed + k; the `text["parameters"]` of a PNG is
        the request that generates it again. If the call is interrupted, the job is canceled.

        Raises:
            JobFailed, JobCanceled: if the job ends without images.
        """
        job = self.submit(label, **fields)
        finished = self._completed(job)
        return [decode_image(self.image(image)) for image in finished.images]

    @lists_fields
    def stream(self, label: str | int | None = None, /, **fields: Unpack[RequestFields]) -> Iterator[Event]:
        """Submit a job and yield its events until it finishes. preview_every=k adds a frame every k steps."""
        yield from self.events(self.submit(label, **fields).id)

    @lists_fields
    def submit(
        self, label: str | int | None = None, /, *, idempotency_key: str | None = None, **fields: Unpack[RequestFields]
    ) -> Job:
        """Submit a job and return it at once, queued (`POST /generate`).

        idempotency_key: a second call with the same key and request within 24 hours returns the same job; None = a new
        key.
        """
        return self._run(self._exchange.submit(label, fields, idempotency_key))

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """The events of a job with seq > `after`, until it finishes. A broken connection is resumed where it broke."""
        stream = EventStream(self._retries, job_id, after)
        while not stream.finished:
            cause: Exception | None = None
            try:
                yield from self._lines(stream)
            except (httpx.TransportError, ServerBusy) as error:
                cause = error
            if not stream.finished:
                time.sleep(stream.reconnect_pause(cause))

    def wait(self, job_id: str) -> Job:
        """Wait until a job has succeeded, failed or been canceled, and return it."""
        for event in self.events(job_id):
            if isinstance(event, JobFinished):
                return event.result
        return self.job(job_id)

    def job(self, job_id: str) -> Job:
        """The current state of a job (`GET /jobs/{id}`)."""
        return self._run(self._exchange.job(job_id))

    def jobs(self, limit: int | None = None, status: Status | None = None) -> Iterator[Job]:
        """Your jobs, newest first, fetched page by page: at most `limit`, and only those with `status` if given."""
        return islice(self._all_jobs(limit, status), limit)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job (`DELETE /jobs/{id}`). Canceling it again has no effect.

        Raises:
            RequestRejected: 409 if it has already succeeded or failed, 404 if it is unknown.
        """
        return self._run(self._exchange.cancel(job_id))

    def image(self, image: JobImage | str) -> bytes:
        """The file of an image. image: a member of `Job.images`, or its `url`."""
        return self._run(self._exchange.download(image if isinstance(image, str) else image.url))

    def animation(self, job_id: str, format: str = "webp", kind: str | None = None) -> bytes:
        """The stored frames of a job as an animation (`GET /jobs/{id}/animation`).

        format: webp, gif or apng.
        kind: x0, xt or eps.

        Raises:
            RequestRejected: 409 if the job has no frames (it was submitted without preview_every).
        """
        return self._run(self._exchange.animation(job_id, format, kind))

    def verify(
        self,
        picture: bytes,
        image: PictureSource | None = None,
        mask: PictureSource | None = None,
        controls: Sequence[PictureSource] = (),
    ) -> VerificationResult:
        """Regenerate a PNG from the request that it carries, and compare the bytes (`POST /verify`). Waits until the
        result is ready.

        image, mask, controls: the files that the PNG was made from, if it was; their paths or bytes. controls: one for
            each of its ControlNets, in their order.

        Raises:
            RequestRejected: 422 if it was made from a picture that is not given and not stored any more.
        """
        return self._run(self._exchange.verify(picture, image, mask, controls))

    @lists_fields_of(TASK_FIELDS["noise"])
    def noise(self, image: PictureSource, /, **fields: Unpack[NoiseFields]) -> Job:
        """Add the noise of a level to a picture, and wait for it (`POST /noise`). The finished job has the noisy
        pictures as `images`, and the array `x_t` for each.

        image: a file's path or bytes, or job:ID/images/K.

        Raises:
            JobFailed, JobCanceled: if the job ends without a result."""
        return self._completed(self._run(self._exchange.task("noise", image, fields)))

    @lists_fields_of(TASK_FIELDS["score"])
    def score(self, image: PictureSource | None = None, /, **fields: Unpack[ScoreFields]) -> Job:
        """The score ∇ log p_t of a picture at a noise level, or at a point of your own, `x_t=` the path or the bytes of
        an .npy file (`POST /score`). The finished job has the arrays `x_t`, `x0`, `epsilon` and `score`, x̂_0 as its
        image, and the norms in `result`. Errors: as `noise`."""
        return self._completed(self._run(self._exchange.task("score", image, fields)))

    @lists_fields_of(TASK_FIELDS["likelihood"])
    def likelihood(self, image: PictureSource, /, **fields: Unpack[LikelihoodFields]) -> Job:
        """The likelihood of a picture under a model (`POST /likelihood`). The `result` of the finished job has
        `bits_per_dimension` and `standard_error`. Errors: as `noise`."""
        return self._completed(self._run(self._exchange.task("likelihood", image, fields)))

    def array(self, array: JobArray) -> bytes:
        """The .npy file of a member of `Job.arrays`; `numpy.load` reads it."""
        return self._run(self._exchange.download(array.url))

    def models(self) -> list[Model]:
        """The models served by live workers; the first is the default (`GET /models`)."""
        return self._run(self._exchange.models())

    def add_model(self, name: str) -> ModelOrder:
        """Serve a model that was removed, or try again to load one that was refused (`PUT /models/{name}`).

        Raises:
            RequestRejected: 403 without an operator's key, 404 if no worker ever had the model.
        """
        return self._run(self._exchange.order_model("PUT", name))

    def remove_model(self, name: str) -> ModelOrder:
        """Serve a model no more (`DELETE /models/{name}`): running jobs finish, waiting ones fail. Errors: as
        `add_model`."""
        return self._run(self._exchange.order_model("DELETE", name))

    def reload_model(self, name: str) -> ModelOrder:
        """Read a model's folder again (`POST /models/{name}/reload`). Errors: as `add_model`."""
        return self._run(self._exchange.order_model("POST", name, "/reload"))

    def workers(self) -> FleetStatus:
        """The queues and the live workers (`GET /workers`)."""
        return self._run(self._exchange.workers())

    def usage(self) -> KeyUsage:
        """The quotas of your key and what is left of them (`GET /usage`)."""
        return self._run(self._exchange.usage())

    def usage_of_all_keys(self) -> list[KeyUsage]:
        """The same for all keys that use something (`GET /usage/keys`).

        Raises:
            RequestRejected: 403 if your key does not have the option `operator`.
        """
        return self._run(self._exchange.usage_of_all_keys())

    def webhook(self, job_id: str) -> WebhookDelivery:
        """How the delivery of a job's webhook stands (`GET /jobs/{id}/webhook`).

        Raises:
            RequestRejected: 404 if the job has no webhook, or is unknown.
        """
        return self._run(self._exchange.webhook(job_id))

    def webhook_secrets(self) -> list[str]:
        """The secrets that your webhooks are signed with, for `verify_webhook` (`GET /webhooks/secrets`)."""
        return self._run(self._exchange.webhook_secrets())

    def _completed(self, job: Job) -> Job:
        """A job once it has succeeded; it is canceled if the wait for it is interrupted."""
        try:
            return require_success(self.wait(job.id))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            with contextlib.suppress(ServiceError):
                self.cancel(job.id)
            raise

    def _all_jobs(self, limit: int | None, status: Status | None) -> Iterator[Job]:
        cursor: str | None = None
        while True:
            page, cursor = self._run(self._exchange.page(cursor, limit or 100, status))
            yield from page
            if cursor is None:
                return

    def _lines(self, stream: EventStream) -> Iterator[Event]:
        call = stream.call
        with self._http.stream(call.method, call.path, **call.arguments()) as response:
            if response.is_error:
                response.read()
            stream.open(response)
            for line in response.iter_lines():
                event = stream.parse(line)
                if event is not None:
                    yield event

    def _run(self, flow: Flow[T]) -> T:
        """Drive a flow: send its calls, sleep its pauses."""
        try:
            step = next(flow)
            while True:
                if isinstance(step, ApiCall):
                    step = flow.send(self._send(step))
                else:
                    time.sleep(step.seconds)
                    step = next(flow)
        except StopIteration as done:
            value: T = done.value
            return value

    def _send(self, call: ApiCall) -> Outcome:
        try:
            return self._http.request(call.method, call.path, **call.arguments())
        except httpx.TransportError as error:
            return error
