"""The OpenAPI document, corrected for what FastAPI cannot know from the routes.

The middlewares in front of the routes refuse requests, too, and every error has the format of its path.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from denoised.app.http.error_formats import ErrorFormat, ErrorFormats
from denoised.app.http.middleware.auth import OPEN_PATHS

PATHS_WITHOUT_REDIS = (*OPEN_PATHS, "/metrics")  # they answer while Redis is away
FASTAPI_SCHEMAS = ("HTTPValidationError", "ValidationError")  # which FastAPI adds and nothing here returns
SECURITY_SCHEME = {"type": "http", "scheme": "bearer", "description": "An API key; `denoised key` makes one."}
FORBIDDEN = "The caller is not a local program, or is a page of another site. Only without API keys."
UNAUTHORIZED = "The API key is missing or wrong."
REDIS_AWAY = "Redis does not answer."
BODY_REFUSALS = {
    413: "The body exceeds 256 KiB, or 8 MiB where a picture is in it.",
    415: "The media type or coding of the body is not supported.",
    422: "Names each invalid field.",
}


class DocumentedAPI(FastAPI):
    """A FastAPI app whose OpenAPI document covers the middlewares and the error formats.

    Needs `state.services` and `state.error_formats` before the document is first requested.
    """

    def openapi(self) -> dict[str, Any]:
        """The document; it is built once."""
        if self.openapi_schema is None:
            keys = bool(self.state.services.settings.api_keys)
            self.openapi_schema = complete_document(super().openapi(), keys, self.state.error_formats)
        return self.openapi_schema


def complete_document(document: dict[str, Any], keys: bool, formats: ErrorFormats) -> dict[str, Any]:
    """Complete FastAPI's document in place. keys: whether API keys are configured."""
    for path, item in document["paths"].items():
        for operation in item.values():
            _complete_operation(operation, path, keys, formats.of_path(path))
    for item in document.get("webhooks", {}).values():
        for operation in item.values():
            operation["responses"].pop("422", None)  # FastAPI's own; a receiver of webhooks is not this server
    for name in FASTAPI_SCHEMAS:
        document["components"]["schemas"].pop(name, None)
    if keys:
        document["components"]["securitySchemes"] = {"key": SECURITY_SCHEME}
    return document


def _complete_operation(operation: dict[str, Any], path: str, keys: bool, format: ErrorFormat) -> None:
    responses = operation["responses"]
    for status in format.statuses:
        responses.pop(str(status), None)
    for status, description in _refusals(operation, path, keys):
        responses.setdefault(str(format.status(status)), {"description": description})
    for status, response in responses.items():
        if status >= "400" and not _has_own_schema(response):
            schema = {"$ref": f"#/components/schemas/{format.schema}"}
            response["content"] = {format.media_type: {"schema": schema}}
    for parameter in operation.get("parameters", []):
        _remove_null(parameter["schema"])
    if keys and path not in OPEN_PATHS:
        operation["security"] = [{"key": []}]


def _refusals(operation: dict[str, Any], path: str, keys: bool) -> list[tuple[int, str]]:
    """The (status, description) of what the middlewares may answer."""
    found = []
    if not keys:
        found.append((403, FORBIDDEN))
    elif path not in OPEN_PATHS:
        found.append((401, UNAUTHORIZED))
    if path not in PATHS_WITHOUT_REDIS:
        found.append((503, REDIS_AWAY))
    if "requestBody" in operation:
        found += BODY_REFUSALS.items()
    return found


def _has_own_schema(response: dict[str, Any]) -> bool:
    """Whether the route declares an error body other than a problem object."""
    content = str(response.get("content", ""))
    generic = any(name in content for name in ("ProblemObject", *FASTAPI_SCHEMAS))
    return "#/components/schemas/" in content and not generic


def _remove_null(schema: dict[str, Any]) -> None:
    """Remove the `null` alternative of an optional parameter: a query or header cannot express it."""
    alternatives = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    if len(alternatives) == 1:
        del schema["anyOf"]
        schema |= alternatives[0]
