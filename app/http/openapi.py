"""The OpenAPI document, made to say what is so: every refusal a problem object, keys where keys are needed.

FastAPI writes the document from the routes, which do not know what stands in front of them.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from denoised.app.compat.openai.errors import is_v1, status_of
from denoised.app.http.auth import OPEN_ROUTES
from denoised.app.http.errors import MEDIA_TYPE

PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemObject"}}}
V1_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/V1Error"}}}
STORELESS = ("/metrics",)  # of those behind the guard: answers without Redis, too
OF_FASTAPI = ("HTTPValidationError", "ValidationError")  # replaced by ProblemObject
SCHEME = {"type": "http", "scheme": "bearer", "description": "An API key, as `denoised key` makes them."}
FOREIGN = "Not a local program, or a page of another site; without API keys only local programs are served."
LIMITED = {413: "The body is over 8 MiB.", 415: "The body is of another kind.", 422: "Names each field that is wrong."}


class DescribedAPI(FastAPI):
    """A FastAPI app whose document is true of everything in front of its routes, too."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            keys = bool(self.state.services.settings.api_keys)
            self.openapi_schema = truthful(super().openapi(), keys)
        return self.openapi_schema


def truthful(document: dict[str, Any], keys: bool) -> dict[str, Any]:
    """The document with what FastAPI does not know. keys: whether API keys are wanted."""
    for path, item in document["paths"].items():
        for operation in item.values():
            if is_v1(path):
                operation["responses"].pop("422", None)
            _describe(operation, path, keys)
    for name in OF_FASTAPI:
        document["components"]["schemas"].pop(name, None)
    if keys:
        document["components"]["securitySchemes"] = {"key": SCHEME}
    return document


def _describe(operation: dict[str, Any], path: str, keys: bool) -> None:
    responses, guarded = operation["responses"], path not in OPEN_ROUTES
    for text, status in _refusals(operation, path, keys):
        responses.setdefault(str(status_of(status) if is_v1(path) else status), {"description": text})
    for status, response in responses.items():
        if status >= "400" and not _has_an_object_of_its_own(response):
            response["content"] = V1_ERROR if is_v1(path) else PROBLEM
    for parameter in operation.get("parameters", []):
        _without_null(parameter["schema"])
    if keys and guarded:
        operation["security"] = [{"key": []}]


def _refusals(operation: dict[str, Any], path: str, keys: bool) -> list[tuple[str, int]]:
    """What an operation may be answered with by what stands before it."""
    found = [] if keys else [(FOREIGN, 403)]
    if path not in OPEN_ROUTES:
        found += [("The key is missing or wrong.", 401)] if keys else []
        found += [("Redis is away.", 503)] if path not in STORELESS else []
    if "requestBody" in operation:
        found += [(text, status) for status, text in LIMITED.items()]
    return found


def _has_an_object_of_its_own(response: dict[str, Any]) -> bool:
    references = str(response.get("content", ""))
    return "#/components/schemas/" in references and not any(
        name in references for name in ("ProblemObject", *OF_FASTAPI)
    )


def _without_null(schema: dict[str, Any]) -> None:
    """A parameter that is left out is none, but there is no way to write one that is null."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= kinds[0]
