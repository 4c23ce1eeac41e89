"""The denoising film of a job, and its contact sheet: stored frames as one animated WebP, GIF or PNG."""

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
from denoised.app.routes.jobs import NamedJob, picture
from denoised.app.services import Services, Serving
from denoised.jobs.record import JobRecord

router = APIRouter(prefix="/jobs", tags=["jobs"])

FRAME_MS, LAST_MS = 80, 1500
SMALLEST_SIDE = 224  # small pictures are enlarged by a whole factor, so that they can be seen
GUTTER = 14  # of a contact sheet: a picture's height in it, so 2 pixels of 28
PAGE = 500
MEDIA = {"webp": ("WEBP", "image/webp"), "gif": ("GIF", "image/gif"), "apng": ("PNG", "image/apng")}
Kind = Literal["x0", "xt"]
Frames = dict[tuple[int, str], dict[int, bytes]]


@router.get(
    "/{job_id}/animation",
    responses={
        200: {"content": {media_type: {} for _, media_type in MEDIA.values()}, "description": "The film."},
        404: {"model": ProblemObject, "description": "Unknown, expired, or another caller's."},
        409: {"model": ProblemObject, "description": "The job kept no frames (and, for a sheet, is not done)."},
    },
    response_class=Response,
    summary="The denoising film",
)
def animation(
    record: NamedJob,
    services: Serving,
    format: Annotated[Literal["webp", "gif", "apng"], Query()] = "webp",
    kind: Annotated[Kind | None, Query(description="x0 or xt; what the job kept, xt first, if left out")] = None,
    sheet: Annotated[bool, Query(description="as a contact sheet, which ends on the finished pictures")] = False,
) -> Response:
    """All images of the job side by side, from noise to the pictures: its stored frames. With `sheet=1` as a contact
    sheet: a gutter around each, and the finished pictures at the end; of a job without frames, these alone."""
    stages = _stages(_frames(services, record), kind)
    if sheet and (stages or kind is None) and len(record.images) == record.request.n:
        stages.append({image.index: bytes(picture(services, record, image.index).body) for image in record.images})
    if not stages:
        wanted = f"{kind} frames" if kind else "frames"
        raise Conflict(f"job {record.id} kept no {wanted}: ask for some with preview_every", job=record.id)
    film = [_grid(pictures, record.request.n, GUTTER if sheet else 0) for pictures in stages]
    pillow_format, media_type = MEDIA[format]
    headers = {"X-Content-Type-Options": "nosniff"}
    return Response(_encode(film, pillow_format), media_type=media_type, headers=headers)


def _stages(frames: Frames, kind: Kind | None) -> list[dict[int, bytes]]:
    """The frames of one kind, step by step."""
    chosen = kind or ("xt" if any(of == "xt" for _, of in frames) else "x0")
    return [frames[step, chosen] for step in sorted({step for step, of in frames if of == chosen})]


def _frames(services: Services, record: JobRecord) -> Frames:
    """(step, kind) → image index → PNG, of the newest attempt."""
    found: Frames = {}
    for event in _events(services, record.id):
        if event["type"] == "frame":
            found.setdefault((event["step"], event["kind"]), {})[event["image"]] = base64.b64decode(event["data"])
    return found


def _events(services: Services, job_id: str) -> Iterable[dict[str, Any]]:
    seq = 0
    while page := services.store.events.read(job_id, seq, PAGE):
        yield from page
        seq = page[-1]["seq"]


def _grid(pictures: dict[int, bytes], count: int, gutter: int) -> Image.Image:
    """The images of one step in a grid, enlarged by a whole factor. gutter: how often it goes into an image's height,
    0 = there is none."""
    opened = {index: Image.open(io.BytesIO(data)) for index, data in pictures.items()}
    width, height = next(iter(opened.values())).size
    gap = max(1, height // gutter) if gutter else 0
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    mode = "RGB" if any(image.mode == "RGB" for image in opened.values()) else "L"
    size = (gap + columns * (width + gap), gap + rows * (height + gap))
    grid = Image.new(mode, size, "white" if gutter else "black")
    for index, image in opened.items():
        row, column = divmod(index, columns)
        grid.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    factor = max(1, math.ceil(SMALLEST_SIDE / min(grid.size)))
    return grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)


def _encode(film: list[Image.Image], pillow_format: str) -> bytes:
    out = io.BytesIO()
    durations = [FRAME_MS] * (len(film) - 1) + [LAST_MS]
    more: dict[str, Any] = {"lossless": True} if pillow_format == "WEBP" else {}
    film[0].save(out, pillow_format, save_all=True, append_images=film[1:], duration=durations, loop=0, **more)
    return out.getvalue()
