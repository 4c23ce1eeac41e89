"""Refuses query parameters that a route does not have, instead of ignoring a typing error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.requests import HTTPConnection

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.middleware.auth import OPEN_PATHS, TICKET_PARAMETER
from denoised.app.http.validation_errors import MAX_ERRORS, MAX_VALUE_LENGTH, format_value

ANY_SOCKET = "/{path:path}"  # the route of WebSockets at unknown paths


def check_query(connection: HTTPConnection) -> None:
    """A dependency of every route. Routes of a job do it later, because an unknown job is a 404 before anything else.

    Raises:
        InvalidRequest: for an unknown or repeated parameter.
    """
    if "job_id" not in connection.path_params:
        check_query_parameters(connection)


def check_query_parameters(connection: HTTPConnection) -> None:
    """Check the names of a request's query parameters.

    The routes of pages and the health checks take any: links and probes carry parameters of their own.

    Raises:
        InvalidRequest: for an unknown or repeated parameter.
    """
    route = connection.scope.get("route")
    if not connection.scope["query_string"]:
        return
    if isinstance(route, APIRoute) and route.include_in_schema and route.path not in OPEN_PATHS:
        allowed = list(_names(route.dependant))
    elif isinstance(route, APIWebSocketRoute) and route.path != ANY_SOCKET:
        allowed = [*_names(route.dependant), TICKET_PARAMETER]
    else:
        return
    errors = list(_errors(Counter(name for name, _ in connection.query_params.multi_items()), allowed))
    if errors:
        more = [("query", f"and {len(errors) - MAX_ERRORS} more errors")] if len(errors) > MAX_ERRORS else []
        raise InvalidRequest(errors[:MAX_ERRORS] + more)


def _names(dependant: Dependant) -> Iterator[str]:
    """The query parameters of a route and its dependencies."""
    yield from (field.alias for field in dependant.query_params)
    for each in dependant.dependencies:
        yield from _names(each)


def _errors(counts: Counter[str], allowed: list[str]) -> Iterator[tuple[str, str]]:
    for name, count in counts.items():
        if name not in allowed:
            names = ", ".join(allowed) or "none"
            yield format_value(name[:MAX_VALUE_LENGTH])[1:-1], f"is not a query parameter here (allowed: {names})"
        elif count > 1:
            yield name, f"was given {count} times (allowed: once)"
