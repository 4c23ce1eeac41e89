"""A client of the service, for the command line and for Python programs. Imports no torch."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx

TERMINAL = ("succeeded", "failed", "canceled")
GATEWAY_TIMEOUT = 504  # the server's words for: not ready yet
PATIENCE = 30  # seconds of one wait


class ServiceError(Exception):
    """The service refused or cannot be reached; the message is its own. status: of its answer, if it gave one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Talks to one server.

    Raises:
        ServiceError: from every method, when the server refuses or cannot be reached.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", key: str | None = None, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def submit(self, **request: Any) -> dict[str, Any]:
        """`POST /generate`; returns the job object."""
        return dict(self._send("POST", "/generate", json=request).json())

    def events(self, job_id: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """A job's events until its end; a broken connection is taken up where it broke."""
        failures = 0
        while True:
            try:
                for event in self._stream(job_id, after):
                    failures, after = 0, event["seq"]
                    yield event
                    if event["type"] in TERMINAL:
                        return
            except httpx.TransportError as error:
                failures += 1
                if failures > 5:
                    raise self._unreachable(error) from error

    def image(self, url: str) -> bytes:
        """The bytes of a picture, by the `url` of an image object."""
        return self._send("GET", url).content

    def verify(self, picture: bytes) -> dict[str, Any]:
        """`POST /verify`, for as long as it takes: makes a PNG again and returns how the two compare.

        "match" says whether the bytes are the same, "reason" why not.
        """
        headers = {
            "Content-Type": "image/png",
            "Prefer": f"wait={PATIENCE}",
            "Idempotency-Key": uuid.uuid4().hex,  # asked again, it goes on with the same job
        }
        while True:
            try:
                answer = self._send("POST", "/verify", content=picture, headers=headers, timeout=PATIENCE + 30)
                return dict(answer.json())
            except ServiceError as error:
                if error.status != GATEWAY_TIMEOUT:
                    raise

    def cancel(self, job_id: str) -> dict[str, Any]:
        """`DELETE /jobs/{id}`; returns the job object."""
        return dict(self._send("DELETE", f"/jobs/{job_id}").json())

    def _stream(self, job_id: str, after: int) -> Iterator[dict[str, Any]]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        with self._http.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=60) as response:
            if response.status_code != 200:
                response.read()
                raise ServiceError(_explained(response))
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **kwargs)
        except ValueError as error:
            raise ServiceError(f"this cannot be sent as JSON ({error})") from error
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise ServiceError(_explained(response), response.status_code)
        return response

    def _unreachable(self, error: Exception) -> ServiceError:
        return ServiceError(
            f"no server answers at {self._url} ({error}): start one with 'denoised serve', or name it with --url"
        )


def _explained(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
