"""What is sent to the service and what its answers mean, without a socket: `Client` and `AsyncClient` share it all.

A *flow* is a generator that yields calls to be made and pauses to be kept, is sent what came of each, and returns
what it was for. Whoever drives it does the waiting.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from denoised.client.errors import Busy, JobCanceled, JobFailed, Misunderstood, Refused, ServiceError, Unreachable
from denoised.client.results import Ended, Event, Fleet, Job, Model, Verification, event_of
from denoised.jobs.request import RequestFields

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
BUSY = (429, 503, 504, 507)
GATEWAY_TIMEOUT = 504  # the server's words for: not ready yet
PATIENCE = 30  # seconds of one wait
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds between tries, where the server names no time
QUIET = 60.0  # seconds without a sign of life, after which a stream is taken up anew; the server pings every 15
PAGE = 100


@dataclass(frozen=True)
class Call:
    """One HTTP request. repeatable: sent twice, it does what it does once."""

    method: str
    path: str
    repeatable: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    timeout: float | None = None

    def arguments(self) -> dict[str, Any]:
        """As httpx takes them."""
        named = {"headers": dict(self.headers), "params": dict(self.params), "content": self.content}
        return named if self.timeout is None else {**named, "timeout": self.timeout}


@dataclass(frozen=True)
class Pause:
    """Seconds to wait."""

    seconds: float


Outcome = httpx.Response | httpx.TransportError
Flow = Generator[Call | Pause, Any, T]
OnWait = Callable[[float, ServiceError], None]


class Exchange:
    """Calls to one server, tried again where that may help: what was refused for now (429, 503 with a Retry-After), and
    connections that broke, when nothing can be done twice by it.

    retry_for: seconds that all pauses of one call may take together; on_wait(seconds, why): told of each.
    """

    def __init__(self, url: str, retry_for: float, on_wait: OnWait | None = None) -> None:
        self.url = url.rstrip("/")
        self.retry_for = retry_for
        self._on_wait = on_wait
        self._met = False  # a server that has answered before is restarting; another one is not there

    def call(self, call: Call) -> Flow[httpx.Response]:
        """The answer to a call, no refusal."""
        waited, tries = 0.0, 0
        while True:
            outcome: Outcome = yield call
            error = self.trouble(outcome)
            if error is None:
                assert isinstance(outcome, httpx.Response)
                return outcome
            pause = self.pause(error, outcome, call, tries)
            if pause is None or waited + pause > self.retry_for:
                raise error
            self.tell(pause, error)
            yield Pause(pause)
            waited, tries = waited + pause, tries + 1

    def trouble(self, outcome: Outcome) -> ServiceError | None:
        """What is wrong with an outcome; None when nothing is."""
        if isinstance(outcome, httpx.TransportError):
            return self.unreachable(outcome)
        self._met = True
        return refusal(outcome) if outcome.status_code >= 300 else None

    def pause(self, error: ServiceError, outcome: Outcome, call: Call, tries: int) -> float | None:
        """Seconds until a call is worth another try; None when it is not."""
        grown: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries)
        if isinstance(error, Busy):  # without a time, it is nothing that passes: nobody serves the model, say
            return None if error.retry_after is None else max(error.retry_after, FIRST_PAUSE)
        if isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout):
            return grown if self._met else None
        if isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError):
            return grown if call.repeatable else None
        return None

    def tell(self, pause: float, error: ServiceError) -> None:
        if self._on_wait is not None:
            self._on_wait(pause, error)

    def unreachable(self, error: Exception) -> Unreachable:
        cause = str(error) or type(error).__name__
        return Unreachable(
            f"no server answers at {self.url} ({cause}): start one with 'denoised serve', or name it with --url"
        )

    def submit(self, label: str | int | None, fields: RequestFields, key: str | None) -> Flow[Job]:
        if label is not None and "label" in fields:
            raise TypeError("the label was given twice, by position and by name")
        content = _json({"label": label, **fields})
        headers = {"Content-Type": "application/json", "Idempotency-Key": key or uuid.uuid4().hex}
        return Job.of(_read((yield from self.call(Call("POST", "/generate", headers=headers, content=content)))))

    def job(self, job_id: str) -> Flow[Job]:
        return Job.of(_read((yield from self.call(Call("GET", _job(job_id))))))

    def cancel(self, job_id: str) -> Flow[Job]:
        return Job.of(_read((yield from self.call(Call("DELETE", _job(job_id))))))

    def page(self, cursor: str | None, limit: int, status: str | None) -> Flow[tuple[list[Job], str | None]]:
        """A page of jobs, of one status if one is named, and the cursor of the next."""
        given = {"limit": str(min(limit, PAGE)), "cursor": cursor, "status": status}
        params = {name: value for name, value in given.items() if value}
        answer = _read((yield from self.call(Call("GET", "/jobs", params=params))))
        return [Job.of(job) for job in _member(answer, "jobs")], _member(answer, "next_cursor")

    def models(self) -> Flow[list[Model]]:
        answer = _read((yield from self.call(Call("GET", "/models"))))
        if not isinstance(answer, list):
            raise Misunderstood("the server's answer is no list of models: is it denoised?")
        return [Model.of(model) for model in answer]

    def workers(self) -> Flow[Fleet]:
        return Fleet.of(_read((yield from self.call(Call("GET", "/workers")))))

    def bytes_at(self, path: str, params: Mapping[str, str] | None = None) -> Flow[bytes]:
        """The bytes at a path of this server; those of another are not fetched, for the key would go with it."""
        if not path.startswith("/") or path.startswith("//"):
            raise Misunderstood(f"{path[:80]!r} is no path of {self.url}")
        return (yield from self.call(Call("GET", path, params=params or {}))).content

    def film(self, job_id: str, format: str, kind: str | None) -> Flow[bytes]:
        params = {"format": format, **({"kind": kind} if kind else {})}
        return (yield from self.bytes_at(f"{_job(job_id)}/animation", params))

    def verify(self, picture: bytes) -> Flow[Verification]:
        """For as long as it takes: asked again, the server goes on with the same job."""
        key = uuid.uuid4().hex
        while True:
            headers = {"Content-Type": "image/png", "Prefer": f"wait={PATIENCE}", "Idempotency-Key": key}
            call = Call("POST", "/verify", headers=headers, content=picture, timeout=PATIENCE + 30)
            try:
                return Verification.of(_read((yield from self.call(call))))
            except Busy as error:
                if error.status != GATEWAY_TIMEOUT:
                    raise


class Following:
    """A job's event stream, taken up where it broke until the job is over."""

    def __init__(self, exchange: Exchange, job_id: str, after: int) -> None:
        self.over = False
        self._exchange = exchange
        self._job = job_id
        self._after = after
        self._waited, self._tries = 0.0, 0

    @property
    def call(self) -> Call:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._after)}
        return Call("GET", f"{_job(self._job)}/events", headers=headers, timeout=QUIET)

    def begin(self, response: httpx.Response) -> None:
        """Look at an answer before its lines are read; of a refusal the whole body has been.

        Raises:
            ServiceError: when there is nothing to follow.
        """
        error = self._exchange.trouble(response)
        if error is not None:
            raise error
        self.over = response.status_code == 204

    def take(self, line: str) -> Event | None:
        """The event in a line of the stream, if there is one."""
        if not line.startswith("data: "):
            return None
        try:
            event = event_of(json.loads(line.removeprefix("data: ")))
        except ValueError as error:
            raise Misunderstood(f"the server's events cannot be read ({error})") from error
        self._after, self._waited, self._tries = event.seq, 0.0, 0
        self.over = isinstance(event, Ended)
        return event

    def pause(self, broken: Exception | None) -> float:
        """Seconds until the stream is asked for again; broken: what ended it, None when it ended by itself.

        Raises:
            ServiceError: when that was tried for long enough.
        """
        error = self._exchange.unreachable(broken) if isinstance(broken, httpx.TransportError) else broken
        pause: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._tries)
        if isinstance(error, Busy) and error.retry_after is not None:
            pause = max(error.retry_after, FIRST_PAUSE)
        if self._waited + pause > self._exchange.retry_for:
            raise error or Unreachable(f"the events of job {self._job} ended before it did")
        if isinstance(error, ServiceError):
            self._exchange.tell(pause, error)
        self._waited, self._tries = self._waited + pause, self._tries + 1
        return pause


def succeeded(job: Job) -> Job:
    """The job itself.

    Raises:
        JobFailed, JobCanceled: when it ended otherwise.
    """
    if job.status == "canceled":
        raise JobCanceled(f"job {job.id} was canceled", job.id)
    if job.status != "succeeded":
        code, why = (job.error.code, f": {job.error.message}") if job.error else ("unknown", "")
        raise JobFailed(f"job {job.id} failed{why}", job.id, code)
    return job


def place(url: str | None, key: str | None) -> tuple[str, dict[str, str]]:
    """Where the server is, and the headers that every call carries; what is not given, the environment says.

    Raises:
        ServiceError: for a key that no header carries; it is not repeated.
    """
    url = url or os.environ.get("DENOISED_URL") or DEFAULT_URL
    key = os.environ.get("DENOISED_API_KEY") if key is None else key
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ServiceError("the API key has characters that no header carries (allowed: ASCII without spaces)")
    return url, {"Authorization": f"Bearer {key}"} if key else {}


def refusal(response: httpx.Response) -> ServiceError:
    """A refusal of the service in its own words."""
    status = response.status_code
    try:
        problem = response.json()
        detail = str(problem["detail"])
        errors = [(str(error["field"]), str(error["message"])) for error in problem.get("errors") or []]
    except (ValueError, KeyError, TypeError, AttributeError):
        detail, errors = f"the server answers HTTP {status}, in no words that denoised has", []
    if status in BUSY:
        return Busy(detail, status, _seconds(response.headers.get("Retry-After")))
    return Refused(detail, status, errors) if status < 500 else ServiceError(detail, status)


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After of whole seconds, as this service sends it."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


def _json(body: Mapping[str, Any]) -> bytes:
    given = {name: value for name, value in body.items() if value is not None}
    try:
        return json.dumps(given, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ServiceError(f"this cannot be sent as JSON ({error})") from error


def _read(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise Misunderstood(f"the server's answer is no JSON ({error}): is it denoised?") from error


def _member(answer: Any, name: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        raise Misunderstood(f"the server's answer has no {name!r}: is it denoised?")
    return answer[name]


def _job(job_id: str) -> str:
    """A job's path.

    Raises:
        ServiceError: for what cannot be an id, so that it leads nowhere else.
    """
    if not job_id.isascii() or not job_id.isalnum():
        raise Refused(f"there is no job {job_id[:80]!r}", 404)
    return f"/jobs/{job_id}"
