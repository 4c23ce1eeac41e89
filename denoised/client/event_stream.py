"""The event stream of a job, which resumes after a broken connection."""

from __future__ import annotations

import json

import httpx

from denoised.client.api_call import ApiCall
from denoised.client.errors import ConnectionFailed, InvalidResponse, ServerBusy, ServiceError
from denoised.client.events import Event, JobFinished, parse_event
from denoised.client.exchange import job_path
from denoised.client.retries import FIRST_PAUSE, RetryPolicy, backoff

# Seconds without any byte after which the stream reconnects. The server sends a ping every 15 seconds.
READ_TIMEOUT = 60.0


class EventStream:
    """Position in a job's events, across connections.

    finished: whether the stream has ended for good.
    """

    def __init__(self, retries: RetryPolicy, job_id: str, after: int) -> None:
        self.finished = False
        self._retries = retries
        self._job_id = job_id
        self._last_seq = after
        self._waited, self._tries = 0.0, 0

    @property
    def call(self) -> ApiCall:
        """The request for the events after the last one received."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._last_seq)}
        return ApiCall("GET", f"{job_path(self._job_id)}/events", headers=headers, timeout=READ_TIMEOUT)

    def open(self, response: httpx.Response) -> None:
        """Check an answer before its lines are read. The body of an error answer must be read already.

        Raises:
            ServiceError: for an error answer.
        """
        error = self._retries.error_of(response)
        if error is not None:
            raise error
        self.finished = response.status_code == 204  # no event after this position

    def parse(self, line: str) -> Event | None:
        """The event in a line of the stream; None for other lines.

        Raises:
            InvalidResponse: if an event cannot be read.
        """
        if not line.startswith("data: "):
            return None
        try:
            event = parse_event(json.loads(line.removeprefix("data: ")))
        except ValueError as error:
            raise InvalidResponse(f"the server's events cannot be read ({error})") from error
        self._last_seq, self._waited, self._tries = event.seq, 0.0, 0
        self.finished = isinstance(event, JobFinished)
        return event

    def reconnect_pause(self, cause: Exception | None) -> float:
        """Seconds until the next connection.

        cause: the error that ended the last connection; None if the server closed it.

        Raises:
            ServiceError: if the total wait would exceed the policy's `retry_for`.
        """
        error = self._retries.connection_failed(cause) if isinstance(cause, httpx.TransportError) else cause
        pause = backoff(self._tries)
        if isinstance(error, ServerBusy) and error.retry_after is not None:
            pause = max(error.retry_after, FIRST_PAUSE)
        if self._waited + pause > self._retries.retry_for:
            raise error or ConnectionFailed(f"the events of job {self._job_id} ended before the job did")
        if isinstance(error, ServiceError):
            self._retries.announce(pause, error)
        self._waited, self._tries = self._waited + pause, self._tries + 1
        return pause
