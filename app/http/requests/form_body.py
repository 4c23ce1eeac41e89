"""A request body as a form with files (`multipart/form-data`, RFC 7578), read as the JSON body of the same route.

A part with a picture becomes the field of its name, in base64; `controls.K.image` is the picture of the K-th item of
`controls`. The text of another part becomes a text where the field takes one, else the JSON that it is: a number, true
or false, a list.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Collection, Coroutine
from typing import Any, get_args

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from denoised.app.http.errors import InvalidRequest
from denoised.app.http.requests.form_parser import FormParser
from denoised.app.http.requests.json_body import JsonRequest, JsonRoute, decode_json
from denoised.app.settings import MAX_JSON_BODY
from denoised.jobs.control import control_index

FORM = "multipart/form-data"


class FormRequest(JsonRequest):
    """A request with a form, whose `json` is the form as an object.

    texts: the fields that take a text.
    """

    def __init__(self, request: Request, texts: Collection[str]) -> None:
        super().__init__(_as_json(request.scope), request.receive)
        self._original = request.scope
        self._texts = texts

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            parts = await read_form(Request(self._original, _replay(await self.body())))
            members = {name: _member(part, is_text=name in self._texts) for name, part in parts.items()}
            self._json = _with_control_pictures(members)
        return self._json


class FormRoute(JsonRoute):
    """A route with a JSON body that takes the same fields as a form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle_json, handle = super().get_route_handler(), APIRoute.get_route_handler(self)
        texts = _text_fields(self)

        async def handle_form(request: Request) -> Response:
            if not is_form(request):
                return await handle_json(request)
            return await handle(FormRequest(request, texts))

        return handle_form


def is_form(request: Request) -> bool:
    """Whether the body of a request is a form."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM


async def read_form(request: Request) -> dict[str, str | bytes]:
    """The parts of a form by name: texts, and the contents of files. `image[]`, as a list is named, is `image`.

    Raises:
        InvalidRequest: for a name that occurs twice.
        BadRequest: for a form that cannot be read.
    """
    form = await FormParser(request).parse()
    try:
        parts = [
            (name.removesuffix("[]"), await part.read() if isinstance(part, UploadFile) else part)
            for name, part in form.multi_items()
        ]
    finally:
        await form.close()
    names = [name for name, _ in parts]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise InvalidRequest([(name[:80], f"{names.count(name)} parts were given (allowed: 1)") for name in repeated])
    return dict(parts)


def _with_control_pictures(members: dict[str, Any]) -> dict[str, Any]:
    """Members with those that are named `controls.K.image` in the items of `controls`, as far as there are such items;
    the check of the fields refuses the others."""
    controls = members.get("controls")
    if not isinstance(controls, list):
        return members
    for name in list(members):
        index = control_index(name)
        if index is not None and index < len(controls) and isinstance(controls[index], dict):
            controls[index] = {**controls[index], "image": members.pop(name)}
    return members


def _member(part: str | bytes, *, is_text: bool) -> Any:
    if isinstance(part, bytes):
        return base64.b64encode(part).decode()
    if is_text or len(part) > MAX_JSON_BODY:
        return part
    with contextlib.suppress(ValueError, RecursionError):
        return decode_json(part)
    return part  # which the check of its field refuses


def _text_fields(route: APIRoute) -> set[str]:
    """The fields of a route's body that take a text and no number."""
    annotation = route.body_field.field_info.annotation if route.body_field is not None else None
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return set()
    return {name for name, field in annotation.model_fields.items() if _takes_text(field.annotation)}


def _takes_text(annotation: Any) -> bool:
    kinds = [annotation, *(part for kind in get_args(annotation) for part in (kind, *get_args(kind)))]
    texts = [kind for kind in kinds if kind is str or isinstance(kind, str)]  # str itself, or a value of a Literal
    return bool(texts) and int not in kinds


def _as_json(scope: Any) -> dict[str, Any]:
    """The scope of the same request with JSON."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


def _replay(body: bytes) -> Callable[[], Coroutine[Any, Any, Message]]:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
