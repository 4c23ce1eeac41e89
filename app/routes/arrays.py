"""`GET /jobs/{id}/images/{k}/{array}.npy` and `.png`: the numbers that a job has computed, and a picture of them."""

from __future__ import annotations

import hashlib
from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response

from denoised.app.http.errors import NotFound
from denoised.app.http.headers import IfNoneMatch
from denoised.app.http.requests.negotiation import etag_matches
from denoised.app.http.schemas import ProblemObject
from denoised.app.job_access.array_picture import render_array
from denoised.app.job_access.lookup import PathJob
from denoised.app.services import Services, Serving
from denoised.jobs.record import ArrayFile, JobRecord

router = APIRouter(prefix="/jobs", tags=["jobs"])

NPY = "application/octet-stream"
Name = Literal["x_t", "x0", "epsilon", "score"]
NOT_FOUND = {
    "model": ProblemObject,
    "content": {"application/problem+json": {}},
    "description": "Unknown, expired, or another caller's; or the job has no such array.",
}
NOT_MODIFIED = {"description": "`If-None-Match` contains the ETag of this file."}


@router.get(
    "/{job_id}/images/{index}/{name}.npy",
    responses={200: {"content": {NPY: {}}, "description": "The bytes."}, 304: NOT_MODIFIED, 404: NOT_FOUND},
    response_class=Response,
    summary="An array",
)
def get_array(
    record: PathJob, index: int, name: Name, services: Serving, if_none_match: IfNoneMatch = None
) -> Response:
    """An array of float32 of shape (channels, height, width), as numpy's .npy. Its ETag is its SHA-256."""
    array, data = _read(services, record, index, name)
    return _response(data, array.sha256, NPY, f"{name}.npy", if_none_match)


@router.get(
    "/{job_id}/images/{index}/{name}.png",
    responses={200: {"content": {"image/png": {}}, "description": "The bytes."}, 304: NOT_MODIFIED, 404: NOT_FOUND},
    response_class=Response,
    summary="A picture of an array",
)
def get_array_picture(
    record: PathJob, index: int, name: Name, services: Serving, if_none_match: IfNoneMatch = None
) -> Response:
    """An array as a PNG: gray is 0, and white and black are ± its largest magnitude. One channel is gray, three are
    red, green and blue; any other number of channels is shown side by side."""
    array, data = _read(services, record, index, name)
    picture = render_array(data, array.shape)
    if picture is None:
        raise NotFound(f"{name} of job {record.id} is damaged")
    return _response(picture, hashlib.sha256(picture).hexdigest(), "image/png", f"{name}.png", if_none_match)


def _read(services: Services, record: JobRecord, index: int, name: str) -> tuple[ArrayFile, bytes]:
    array = next((each for each in record.arrays if (each.index, each.name) == (index, name)), None)
    data = services.store.arrays.read(record.id, index, name) if array is not None else None
    if array is None or data is None:
        raise NotFound(f"job {record.id} ({record.status}, {record.request.task}) has no {name} of image {index}")
    return array, data


def _response(data: bytes, digest: str, media_type: str, filename: str, if_none_match: str | None) -> Response:
    headers = {"ETag": f'"{digest}"'}
    if etag_matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    headers |= {
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=86400, immutable",
        "Content-Disposition": f'inline; filename="{filename}"',
    }
    return Response(data, media_type=media_type, headers=headers)
