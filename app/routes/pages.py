"""The playground at `/`, the course at `/learn`, the API reference at `/docs` and the operator's page at `/operator`.

They are the files of `app/playground/`: not built, and they load nothing from other sites.
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from denoised.app.http.errors import NotFound
from denoised.app.http.headers import IfNoneMatch
from denoised.app.http.requests.negotiation import etag_matches
from denoised.app.http.requests.request_body import GenerateRequest
from denoised.app.http.validation_errors import format_value
from denoised.app.services import Serving

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "playground"
FRONT_PAGE, LEARN_PAGE, DOCS_PAGE, OPERATOR_PAGE = "index.html", "learn.html", "docs.html", "operator.html"
# The page fetches pictures with the API key and shows them as blobs. With Trusted Types, assigning a text where HTML is
# expected throws.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # browsers store the file and revalidate it by its ETag on each use
}


@dataclass(frozen=True)
class Asset:
    """A file of the playground; its ETag is a hash of its content, so it is equal on every server."""

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
    """The playground's files by their path below its folder, read once."""
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file())
    return {path.relative_to(FOLDER).as_posix(): Asset.read(path) for path in files}


@router.get("/")
async def home(if_none_match: IfNoneMatch = None) -> Response:
    """The playground."""
    return _asset_response(assets()[FRONT_PAGE], if_none_match)


@router.get("/learn")
async def learn(if_none_match: IfNoneMatch = None) -> Response:
    """The course "How it works". Like the playground, it is open, and asks for a key when it needs one."""
    return _asset_response(assets()[LEARN_PAGE], if_none_match)


@router.get("/docs")
async def docs(if_none_match: IfNoneMatch = None) -> Response:
    """The API reference. With API keys, browsers open it as /playground/docs.html, because a URL carries no key."""
    return _asset_response(assets()[DOCS_PAGE], if_none_match)


@router.get("/operator")
async def operator(if_none_match: IfNoneMatch = None) -> Response:
    """The workers, the queues and what all keys use. The page is open; what it shows needs an operator's key."""
    return _asset_response(assets()[OPERATOR_PAGE], if_none_match)


@router.get("/playground/settings.json")
async def page_settings(services: Serving) -> Response:
    """What the page needs before its first request. keys: whether the server requires an API key."""
    return JSONResponse({"keys": bool(services.settings.api_keys)}, headers={"Cache-Control": "no-cache"})


@router.get("/playground/request.json")
async def request_schema() -> Response:
    """The fields of the form: the properties of the JSON Schema of `POST /generate`."""
    return JSONResponse(GenerateRequest.model_json_schema()["properties"], headers={"Cache-Control": "no-cache"})


@router.get("/playground/{name:path}")
async def file(name: str, if_none_match: IfNoneMatch = None) -> Response:
    """A file of the playground."""
    asset = assets().get(name)
    if asset is None:
        raise NotFound(f"nothing found at {format_value('/playground/' + name)[1:-1]}")
    return _asset_response(asset, if_none_match)


def _asset_response(asset: Asset, if_none_match: str | None) -> Response:
    headers = {**HEADERS, "ETag": asset.etag}
    if etag_matches(if_none_match, asset.etag):
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)
