"""When a call is retried, and after how many seconds."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from denoised.client.api_call import ApiCall, Flow, Outcome, Pause
from denoised.client.errors import ConnectionFailed, ServerBusy, ServiceError
from denoised.client.responses import error_from_response
from denoised.command_line.system_errors import describe_system_error

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds between tries if the server names no time

OnWait = Callable[[float, ServiceError], None]


class RetryPolicy:
    """Retries calls to one server: on 429 and 503 with a Retry-After, and after a broken connection if sending the call
    twice is harmless.

    retry_for: longest total wait of one call, in seconds.
    on_wait: called as on_wait(seconds, error) before each wait.
    """

    def __init__(self, url: str, retry_for: float, on_wait: OnWait | None = None) -> None:
        self.url = url.rstrip("/")
        self.retry_for = retry_for
        self._on_wait = on_wait
        # A server that answered before may be restarting. A server that never answered is not retried.
        self._has_answered = False

    def send(self, call: ApiCall) -> Flow[httpx.Response]:
        """The successful answer to a call.

        Raises:
            ServiceError: if the last try failed.
        """
        waited, tries = 0.0, 0
        while True:
            outcome: Outcome = yield call
            error = self.error_of(outcome)
            if error is None:
                assert isinstance(outcome, httpx.Response)
                return outcome
            pause = self._pause(error, outcome, call, tries)
            if pause is None or waited + pause > self.retry_for:
                raise error
            self.announce(pause, error)
            yield Pause(pause)
            waited, tries = waited + pause, tries + 1

    def error_of(self, outcome: Outcome) -> ServiceError | None:
        """The error that an outcome stands for; None for a success."""
        if isinstance(outcome, httpx.TransportError):
            return self.connection_failed(outcome)
        self._has_answered = True
        return error_from_response(outcome) if outcome.status_code >= 300 else None

    def announce(self, pause: float, error: ServiceError) -> None:
        """Call `on_wait`."""
        if self._on_wait is not None:
            self._on_wait(pause, error)

    def connection_failed(self, error: Exception) -> ConnectionFailed:
        """A transport error with this server's URL and what to do."""
        cause = describe_system_error(error) or type(error).__name__
        return ConnectionFailed(
            f"no server answers at {self.url} ({cause}): start one with 'denoised serve', or name another with --url"
        )

    def _pause(self, error: ServiceError, outcome: Outcome, call: ApiCall, tries: int) -> float | None:
        """Seconds until the next try; None if the call is not retried."""
        if isinstance(error, ServerBusy):
            # Without a Retry-After the state does not pass by itself: for example, no worker serves the model.
            return None if error.retry_after is None else max(error.retry_after, FIRST_PAUSE)
        if isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout):
            return backoff(tries) if self._has_answered else None
        if isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError):
            return backoff(tries) if call.repeatable else None
        return None


def backoff(tries: int) -> float:
    """Seconds until the next try: doubles from FIRST_PAUSE to LONGEST_PAUSE."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries))
