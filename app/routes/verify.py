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
from denoised.jobs.request import computation
from denoised.jobs.store import Outcome

router = APIRouter(tags=["jobs"])

SHAPE = slice(12, 24)  # the bytes of a PNG that say "IHDR", width and height
BIT_DEPTH = slice(24, 25)  # the byte that says how many bits a sample has

_PROBLEM: dict[str, Any] = {"model": ProblemObject, "content": {"application/problem+json": {}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Verification,
        "description": "The picture was made again; `match` says whether the bytes are equal.",
    },
    409: {**_PROBLEM, "description": "The picture could not be made again: the job failed or was canceled."},
    415: {**_PROBLEM, "description": "The body is no PNG."},
    422: {**_PROBLEM, "description": "The PNG carries no request, or the model does not accept it."},
    429: {**_PROBLEM, "description": "Too much work waits; see `Retry-After`."},
    503: {**_PROBLEM, "description": "No worker serves the model, or Redis is away."},
    504: {
        **_PROBLEM,
        "description": "Not ready in time; `job` keeps running, and the same Idempotency-Key finds it again.",
    },
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
    """Read the request from a PNG, queue it as `POST /generate` does, wait for the picture, and compare the two files.
    If you disconnect early, the job is canceled, unless you sent an Idempotency-Key."""
    parameters = await run_in_threadpool(read_parameters, body)
    wait = Preference.of({"prefer": prefer or ""}, services.settings.max_wait).wait
    record, _ = await run_in_threadpool(submit, services, parameters.fields(), owner, idempotency_key)
    ended = await at_its_end(services, request, record, wait, pictures=1, cancel=idempotency_key is None)
    if ended is None:
        return Response(status_code=CLIENT_GONE)
    verification = await run_in_threadpool(_compare, body, parameters, ended)
    return JSONResponse(verification.model_dump(), headers={**location(record), **applied(wait)})


def _compare(given: bytes, parameters: PictureParameters, ended: Outcome) -> Verification:
    """Compare a file with the first picture of the job that made it again. Decodes both; call it in a thread.

    Raises:
        Conflict: when the job made no picture.
    """
    record = ended.record
    if record.status != "succeeded":
        cause = f" ({record.error['message']})" if record.error else ""
        raise Conflict(f"the picture was not made again: job {record.id} {record.status}{cause}", job=record.id)
    made = bytes(picture_of(ended, 0).body)
    same = same_pixels(given, made)
    return Verification.model_validate(
        {
            "match": given == made,
            "pixels_match": same is True,
            "reason": None if given == made else _difference(same, parameters.numerics, record.numerics or ""),
            "sha256": hashlib.sha256(given).hexdigest(),
            "expected_sha256": hashlib.sha256(made).hexdigest(),
            "numerics": {"picture": parameters.numerics, "here": record.numerics},
            "request": parameters.model_dump(exclude={"numerics"}, exclude_unset=True),
            "job": record.id,
        }
    )


def same_pixels(given: bytes, made: bytes) -> bool | None:
    """Whether a PNG shows the same as ours; None when its pixels cannot be read.

    Only a file with the width and height of ours is decoded. Samples of 16 bits never equal ours of 8.
    """
    if given == made:
        return True
    if given[SHAPE] != made[SHAPE] or given[BIT_DEPTH] > made[BIT_DEPTH]:
        return False
    with Image.open(io.BytesIO(made), formats=["PNG"]) as ours:
        size, expected = ours.size, ours.convert("RGBA").tobytes()
    try:
        with Image.open(io.BytesIO(given), formats=["PNG"]) as theirs:
            # A file may carry two IHDR chunks; Pillow believes the last one.
            return theirs.size == size and theirs.convert("RGBA").tobytes() == expected
    except Exception:  # Pillow's decoders meet broken bytes with errors of a dozen kinds
        return None


def _difference(same: bool | None, there: str, here: str) -> str:
    """Why the bytes differ, in one sentence. there, here: the numerics of the file and of the picture made again."""
    if same is None:
        return "the file is damaged: its pixels cannot be read"
    if there == here:
        if same:
            return "same pixels, different file: it was re-saved or edited"
        return (
            "the numerics are the same, so the picture or its request was changed after it was made, "
            "or the model of that name is a different one"
        )
    if same and computation(there) == computation(here):
        return "same pixels, different file: another version of denoised wrote it"
    what = "the pixels are equal, but the file was" if same else "the picture was"
    return f"{what} made under {there}, here under {here}: equal bytes are promised under the same numerics only"
