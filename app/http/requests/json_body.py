"""The JSON that clients send. An object may name each of its members once.

RFC 8259 (section 4) leaves open what a repeated name means, and programs differ: a proxy may check the first value
where this server would use the last.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.requests.body_limits import check_json_size
from denoised.app.http.validation_errors import MAX_ERRORS, MAX_VALUE_LENGTH, format_value
from denoised.app.settings import MAX_JSON_BODY


def decode_json(text: str | bytes) -> Any:
    """Decode JSON.

    Raises:
        InvalidRequest: when an object has a name more than once.
        ValueError, RecursionError: as `json.loads`; see `describe_unreadable_body`.
    """
    return json.loads(text, object_pairs_hook=_unique_members)


def decode_large_json(text: str | bytes) -> Any:
    """Decode JSON that may be over the limit for JSON, because a picture is in it. Takes long.

    Raises:
        BodyTooLarge: when it is over that limit and is not JSON, or no picture is in it.
        InvalidRequest, ValueError, RecursionError: as `decode_json`, within the limit.
    """
    try:
        members = decode_json(text)
    except (ValueError, RecursionError):
        check_json_size(len(text), None)
        raise
    check_json_size(len(text), members)
    return members


class JsonRequest(Request):
    """A request whose JSON body is decoded by `decode_json`."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            if len(body) > MAX_JSON_BODY:
                self._json = await run_in_threadpool(decode_large_json, body)
            else:
                self._json = decode_json(body)
        return self._json


class JsonRoute(APIRoute):
    """A route that gets `JsonRequest`s: the class of every route with a JSON body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = [(name, count) for name, count in counts.items() if count > 1]
        raise InvalidRequest([_repeated(name, count) for name, count in repeated[:MAX_ERRORS]])
    return members


def _repeated(name: str, count: int) -> tuple[str, str]:
    return format_value(name[:MAX_VALUE_LENGTH])[1:-1], f"was given {count} times (allowed: once)"
