"""One HTTP POST to a receiver: no redirects, a limit on its time, and no more of the answer than its head.

`http.client` has a timeout for each read alone, so that a receiver could hold a connection for hours, byte by byte.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from denoised.app.webhooks.addresses import Address, RefusedAddress, resolve_host
from denoised.app.webhooks.target import WebhookTarget

MAX_HEAD = 16 * 1024  # bytes of the answer that are read
STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: |\r?\n)")
RETRY_AFTER = re.compile(rb"\nretry-after: *([0-9]{1,6}) *\r?\n", re.IGNORECASE)
HEAD_END = re.compile(rb"\r?\n\r?\n")


class PostFailed(Exception):
    """The receiver gave no answer. The message is one line, without addresses."""


@dataclass(frozen=True)
class Answer:
    """The receiver's answer. retry_after: seconds, None if it names none."""

    status: int
    retry_after: int | None = None


def post(
    target: WebhookTarget, body: bytes, headers: Mapping[str, str], *, timeout: float, private: bool = False
) -> Answer:
    """Send a request and read the head of the answer. Blocking.

    timeout: seconds for everything but the resolver.
    private: whether the receiver may have a private address.

    Raises:
        PostFailed: when there is no answer in time, or it is not HTTP.
    """
    try:
        addresses = resolve_host(target.host, target.port, private=private)
        end = time.monotonic() + timeout
        with _connect(addresses, end) as plain, _encrypted(plain, target) as connection:
            connection.settimeout(_left(end))
            connection.sendall(_head(target, len(body), headers) + body)
            return _read_answer(connection, end)
    except RefusedAddress as error:
        raise PostFailed(str(error)) from error
    except TimeoutError as error:
        raise PostFailed(f"no answer within {timeout:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise PostFailed(f"the certificate is not valid: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise PostFailed(f"TLS failed: {error.reason or 'unknown reason'}") from error
    except socket.gaierror as error:
        raise PostFailed("the host name cannot be resolved") from error
    except (OSError, UnicodeError) as error:
        raise PostFailed(f"the connection failed: {getattr(error, 'strerror', None) or 'unknown reason'}") from error


def _connect(addresses: Sequence[Address], end: float) -> socket.socket:
    """A connection to the first of the addresses that accepts one. They were checked, and nothing resolves again."""
    failure: OSError | None = None
    for family, address in addresses:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(_left(end))
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure or OSError("the host has no address")


def _encrypted(connection: socket.socket, target: WebhookTarget) -> socket.socket:
    if target.scheme == "http":
        return connection
    return ssl.create_default_context().wrap_socket(connection, server_hostname=target.host)


def _head(target: WebhookTarget, length: int, headers: Mapping[str, str]) -> bytes:
    fields = {"Host": target.authority, "Content-Length": str(length), "Connection": "close", **headers}
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _read_answer(connection: socket.socket, end: float) -> Answer:
    received = b""
    while True:
        while (head := HEAD_END.search(received)) is None:
            if len(received) > MAX_HEAD:
                raise PostFailed(f"the head of the answer exceeds {MAX_HEAD} bytes")
            connection.settimeout(_left(end))
            if not (data := connection.recv(4096)):
                raise PostFailed("the connection was closed without an answer")
            received += data
        status = STATUS_LINE.match(received)
        if status is None:
            raise PostFailed("the answer is not HTTP/1.1")
        if int(status[1]) >= 200:
            delay = RETRY_AFTER.search(received[: head.end()])
            return Answer(int(status[1]), int(delay[1]) if delay else None)
        received = received[head.end() :]  # 1xx announces another answer


def _left(end: float) -> float:
    """The seconds until `end`.

    Raises:
        TimeoutError: when there are none.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
