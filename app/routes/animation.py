"""`GET /jobs/{id}/animation`: the stored frames of a job as one animated WebP, GIF or PNG, or as a contact sheet."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from PIL import Image
from starlette.responses import Response

from denoised.app.http.errors import Conflict
from denoised.app.http.schemas import ProblemObject
from denoised.app.job_access.lookup import PathJob
from denoised.app.job_access.picture_response import stored_picture_response
from denoised.app.services import Services, Serving
from denoised.jobs.record import JobRecord

router = APIRouter(prefix="/jobs", tags=["jobs"])

FRAME_MS, LAST_FRAME_MS = 80, 1500
MIN_SIDE = 224  # pixels; smaller pictures are enlarged by an integer factor
GUTTER_DIVISOR = 14  # a contact sheet's gutter is the picture's height divided by this
EVENTS_PER_READ = 500
FORMATS = {"webp": ("WEBP", "image/webp"), "gif": ("GIF", "image/gif"), "apng": ("PNG", "image/apng")}
Kind = Literal["x0", "xt"]
Pictures = dict[int, bytes]  # by image index
Frames = dict[tuple[int, str], Pictures]  # by step and kind


@router.get(
    "/{job_id}/animation",
    responses={
        200: {"content": {media_type: {} for _, media_type in FORMATS.values()}, "description": "The animation."},
        404: {"model": ProblemObject, "description": "Unknown, expired, or another caller's."},
        409: {"model": ProblemObject, "description": "The job kept no frames (and, for a sheet, has not ended)."},
    },
    response_class=Response,
    summary="The denoising animation",
)
def animation(
    record: PathJob,
    services: Serving,
    format: Annotated[Literal["webp", "gif", "apng"], Query()] = "webp",
    kind: Annotated[
        Kind | None, Query(description="`x0` or `xt`; by default `xt` if the job kept it, else `x0`")
    ] = None,
    sheet: Annotated[bool, Query(description="a contact sheet, which ends with the finished pictures")] = False,
) -> Response:
    """The stored frames of all images of the job, side by side, from noise to picture. With `sheet=1`, each image has a
    gutter and the finished pictures come last; a job without frames has only these."""
    stages = _stages(_frames(services, record), kind)
    if sheet and (stages or kind is None) and len(record.images) == record.request.n:
        stages.append(_finished_pictures(services, record))
    if not stages:
        frames = f"{kind} frames" if kind else "frames"
        raise Conflict(f"job {record.id} kept no {frames}: request some with preview_every", job=record.id)
    grids = [_grid(pictures, record.request.n, GUTTER_DIVISOR if sheet else 0) for pictures in stages]
    pillow_format, media_type = FORMATS[format]
    headers = {"X-Content-Type-Options": "nosniff"}
    return Response(_encode(grids, pillow_format), media_type=media_type, headers=headers)


def _stages(frames: Frames, kind: Kind | None) -> list[Pictures]:
    """The frames of one kind, in the order of their steps."""
    chosen = kind or ("xt" if any(each == "xt" for _, each in frames) else "x0")
    return [frames[step, chosen] for step in sorted({step for step, each in frames if each == chosen})]


def _finished_pictures(services: Services, record: JobRecord) -> Pictures:
    return {image.index: bytes(stored_picture_response(services, record, image.index).body) for image in record.images}


def _frames(services: Services, record: JobRecord) -> Frames:
    """The PNGs of all stored frames; a later attempt replaces frames of an earlier one."""
    found: Frames = {}
    for event in _events(services, record.id):
        if event["type"] == "frame":
            found.setdefault((event["step"], event["kind"]), {})[event["image"]] = base64.b64decode(event["data"])
    return found


def _events(services: Services, job_id: str) -> Iterable[dict[str, Any]]:
    seq = 0
    while events := services.store.events.read(job_id, seq, EVENTS_PER_READ):
        yield from events
        seq = events[-1]["seq"]


def _grid(pictures: Pictures, count: int, gutter_divisor: int) -> Image.Image:
    """The images of one step in a grid for `count` images, enlarged by an integer factor.

    gutter_divisor: the gutter is the picture's height divided by it; 0 = no gutter.
    """
    opened = {index: Image.open(io.BytesIO(data)) for index, data in pictures.items()}
    width, height = next(iter(opened.values())).size
    gutter = max(1, height // gutter_divisor) if gutter_divisor else 0
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    mode = "RGB" if any(image.mode == "RGB" for image in opened.values()) else "L"
    size = (gutter + columns * (width + gutter), gutter + rows * (height + gutter))
    grid = Image.new(mode, size, "white" if gutter else "black")
    for index, image in opened.items():
        row, column = divmod(index, columns)
        grid.paste(image, (gutter + column * (width + gutter), gutter + row * (height + gutter)))
    factor = max(1, math.ceil(MIN_SIDE / min(grid.size)))
    return grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)


def _encode(grids: list[Image.Image], pillow_format: str) -> bytes:
    out = io.BytesIO()
    durations = [FRAME_MS] * (len(grids) - 1) + [LAST_FRAME_MS]
    options: dict[str, Any] = {"lossless": True} if pillow_format == "WEBP" else {}
    grids[0].save(out, pillow_format, save_all=True, append_images=grids[1:], duration=durations, loop=0, **options)
    return out.getvalue()
