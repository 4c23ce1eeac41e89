"""`POST /verify`: make a picture again from the request that it carries, and compare."""

from __future__ import annotations

import hashlib
import io
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from denoised.app.admission.picture_parameters import PictureParameters, read_parameters
from denoised.app.admission.submission import submit
from denoised.app.http.errors import Conflict
from denoised.app.http.negotiation import Preference, applied
from denoised.app.http.schemas import ProblemObject, Verification
from denoised.app.routes.generate import CLIENT_GONE, IdempotencyKey, at_its_end, location
from denoised.app.routes.jobs import picture_of
from denoised.app.services import Owner, Serving
from denoised.jobs.store import Outcome

router = APIRouter(tags=["jobs"])

SHAPE = slice(12, 24)  # of a PNG's bytes: "IHDR", width, height
DEPTH = slice(24, 25)  # bits of a sample

_PROBLEM: dict[str, Any] = {"model": ProblemObject, "content": {"application/problem+json": {}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Verification, "description": "It was made again; `match` says whether the bytes are the same."},
    409: {**_PROBLEM, "description": "It could not be made again: the job failed, or was canceled."},
    415: {**_PROBLEM, "description": "No PNG."},
    422: {**_PROBLEM, "description": "A PNG that carries no request, or one that the model does not take."},
    429: {**_PROBLEM, "description": "Too much work waits; see `Retry-After`."},
    503: {**_PROBLEM, "description": "No worker serves the model, or Redis is away."},
    504: {**_PROBLEM, "description": "Not ready in time; `job` goes on, the same Idempotency-Key comes back to it."},
}


@router.post("/verify", responses=RESPONSES, summary="Make a picture again and compare")
async def verify(
    body: Annotated[bytes, Body(media_type="image/png", description="a PNG as `POST /generate` made it")],
    request: Request,
    services: Serving,
    owner: Owner,
    prefer: Annotated[str | None, Header(description="wait=S: give up after S seconds")] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Read the request out of a PNG, queue it as `POST /generate` would, wait, and compare the two files. A client
    that goes away takes the job with it, unless it named an Idempotency-Key."""
    parameters = await run_in_threadpool(read_parameters, body)
    wait = Preference.of({"prefer": prefer or ""}, services.settings.max_wait).wait
    record, _ = await run_in_threadpool(submit, services, parameters, owner, idempotency_key)
    ended = await at_its_end(services, request, record, wait, pictures=1, cancel=idempotency_key is None)
    if ended is None:
        return Response(status_code=CLIENT_GONE)
    verification = await run_in_threadpool(_compare, body, parameters, ended)
    return JSONResponse(verification.model_dump(), headers={**location(record), **applied(wait)})


def _compare(given: bytes, parameters: PictureParameters, ended: Outcome) -> Verification:
    """Slow.

    Raises:
        Conflict: when the job made no picture.
    """
    record = ended.record
    if record.status != "succeeded":
        cause = f" ({record.error['message']})" if record.error else ""
        raise Conflict(f"the picture was not made again: job {record.id} {record.status}{cause}", job=record.id)
    made = bytes(picture_of(ended, 0).body)
    there, here = parameters.numerics, record.numerics
    alike = same_pixels(given, made)
    return Verification.model_validate(
        {
            "match": given == made,
            "pixels_match": alike is True,
            "reason": None if given == made else _reason(alike, there, here),
            "sha256": hashlib.sha256(given).hexdigest(),
            "expected_sha256": hashlib.sha256(made).hexdigest(),
            "numerics": {"picture": there, "here": here},
            "request": parameters.model_dump(exclude={"numerics"}, exclude_unset=True),
            "job": record.id,
        }
    )


def same_pixels(given: bytes, made: bytes) -> bool | None:
    """Whether a PNG shows what ours does; None when its pixels cannot be read.

    Nothing is unpacked whose width and height are not those of ours; 16-bit samples are others than ours.
    """
    if given == made:
        return True
    if given[SHAPE] != made[SHAPE] or given[DEPTH] > made[DEPTH]:
        return False
    with Image.open(io.BytesIO(made), formats=["PNG"]) as ours:
        size, expected = ours.size, ours.convert("RGBA").tobytes()
    try:
        with Image.open(io.BytesIO(given), formats=["PNG"]) as theirs:
            # A file may state its size twice.
            return theirs.size == size and theirs.convert("RGBA").tobytes() == expected
    except Exception:  # Pillow's decoders meet broken bytes with errors of a dozen kinds
        return None


def _reason(alike: bool | None, there: str, here: str | None) -> str:
    """Why the bytes differ, in one sentence."""
    if alike is None:
        return "the file is damaged: its pixels cannot be read"
    if there != here:
        what = "the pixels are equal, but the file was" if alike else "the picture was"
        return f"{what} made under {there}, here under {here}: equal bytes are promised under the same numerics only"
    if alike:
        return "the pixels are equal, only the file around them differs: it was written again or edited"
    return (
        "the numerics are the same, so the picture or its request was changed after it was made, "
        "or the model of that name is another one"
    )
