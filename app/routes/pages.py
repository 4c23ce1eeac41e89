"""The playground at `/`, and the API's page at `/docs`: files as they lie in `app/playground/`. Nothing is built, and
nothing comes from elsewhere.
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import JSONResponse, Response

from denoised.app.http.errors import NotFound, shown
from denoised.app.http.negotiation import names_tag
from denoised.app.http.request_body import GenerateRequest
from denoised.app.services import Serving

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "playground"
FRONT, DOCS = "index.html", "docs.html"
# Pictures that need a key are fetched with it and shown as blobs. Where a browser knows Trusted Types, a text that
# would be read as HTML throws.
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    # Kept, but asked for each time: a new version is seen at once, the same one is not sent twice.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page."""

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> Asset:
        body = path.read_bytes()
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return cls(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


@cache
def assets() -> Mapping[str, Asset]:
    """The page's files by name, read once."""
    return {path.name: Asset.read(path) for path in sorted(FOLDER.iterdir()) if path.is_file()}


IfNoneMatch = Annotated[str | None, Header()]


@router.get("/")
async def home(if_none_match: IfNoneMatch = None) -> Response:
    """What people find who open the address in a browser."""
    return _answer(assets()[FRONT], if_none_match)


@router.get("/docs")
async def docs(if_none_match: IfNoneMatch = None) -> Response:
    """The API for people. With API keys a browser opens it as /playground/docs.html: an address carries no key."""
    return _answer(assets()[DOCS], if_none_match)


@router.get("/playground/settings.json")
async def settings(services: Serving) -> Response:
    """What the page has to know before its first request. keys: whether it has to ask for one."""
    return JSONResponse({"keys": bool(services.settings.api_keys)}, headers={"Cache-Control": "no-cache"})


@router.get("/playground/request.json")
async def request_schema() -> Response:
    """The fields of the form: the properties of the JSON Schema of `POST /generate`."""
    return JSONResponse(GenerateRequest.model_json_schema()["properties"], headers={"Cache-Control": "no-cache"})


@router.get("/playground/{name}")
async def file(name: str, if_none_match: IfNoneMatch = None) -> Response:
    """A file of the page."""
    asset = assets().get(name)
    if asset is None:
        raise NotFound(f"there is nothing at {shown('/playground/' + name)[1:-1]}")
    return _answer(asset, if_none_match)


def _answer(asset: Asset, if_none_match: str | None) -> Response:
    headers = {**HEADERS, "ETag": asset.etag}
    if names_tag(if_none_match, asset.etag):
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)
