"""`GET /jobs/{id}/animation`: the stored frames of a job as one animated WebP, GIF or PNG, or as a contact sheet."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from denoised.app.http.errors import Conflict
from denoised.app.http.schemas import ProblemObject
from denoised.app.job_access.film import Kind, Pictures, read_stages, render
from denoised.app.job_access.lookup import PathJob
from denoised.app.job_access.picture_response import stored_picture_response
from denoised.app.services import Services, Serving
from denoised.jobs.record import JobRecord

router = APIRouter(prefix="/jobs", tags=["jobs"])

FORMATS = {"webp": ("WEBP", "image/webp"), "gif": ("GIF", "image/gif"), "apng": ("PNG", "image/apng")}


@router.get(
    "/{job_id}/animation",
    responses={
        200: {"content": {media_type: {} for _, media_type in FORMATS.values()}, "description": "The animation."},
        404: {"model": ProblemObject, "description": "Unknown, expired, or another caller's."},
        409: {"model": ProblemObject, "description": "The job kept no frames (and, for a sheet, has not ended)."},
        503: {"model": ProblemObject, "description": "Others are being made, see `Retry-After`; or Redis is away."},
    },
    response_class=Response,
    summary="The denoising animation",
)
async def animation(
    record: PathJob,
    services: Serving,
    format: Annotated[Literal["webp", "gif", "apng"], Query()] = "webp",
    kind: Annotated[
        Kind | None, Query(description="`x0`, `xt` or `eps`; by default `xt` if the job kept it, else `x0`")
    ] = None,
    sheet: Annotated[bool, Query(description="a contact sheet, which ends with the finished pictures")] = False,
) -> Response:
    """The stored frames of all images of the job, side by side, from noise to picture. With `sheet=1`, each image has a
    gutter and the finished pictures come last; a job without frames has only these. A very large animation shows every
    k-th frame."""
    if not record.request.preview_every and (kind is not None or not sheet):
        raise _no_frames(record, kind)  # at once: it needs neither Redis nor a slot
    pillow_format, media_type = FORMATS[format]
    content = await services.renderings.run(partial(_render, services, record, pillow_format, kind, sheet))
    return Response(content, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})


def _render(services: Services, record: JobRecord, pillow_format: str, kind: Kind | None, sheet: bool) -> bytes:
    stages = read_stages(services.frames, services.store.results, record.id, kind)
    if sheet and (stages or kind is None) and len(record.images) == record.request.n:
        stages.append(_finished_pictures(services, record))
    film = render(stages, record.request.n, pillow_format, gutters=sheet) if stages else None
    if film is None:
        raise _no_frames(record, kind)
    return film


def _no_frames(record: JobRecord, kind: Kind | None) -> Conflict:
    frames = f"{kind} frames" if kind else "frames"
    return Conflict(f"job {record.id} kept no {frames}: request some with preview_every", job=record.id)


def _finished_pictures(services: Services, record: JobRecord) -> Pictures:
    return {image.index: bytes(stored_picture_response(services, record, image.index).body) for image in record.images}
