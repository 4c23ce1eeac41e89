"""`POST /verify`: make a picture again from the request that it carries, and compare the two files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from denoised.app.admission.input_pictures import with_given_files
from denoised.app.admission.picture_parameters import PictureParameters, read_parameters
from denoised.app.admission.submission import submit
from denoised.app.http.errors import Conflict, InvalidRequest
from denoised.app.http.headers import IdempotencyKey, job_location
from denoised.app.http.requests.form_body import is_form, read_form
from denoised.app.http.requests.negotiation import Preference, preference_applied
from denoised.app.http.schemas import ProblemObject, Verification
from denoised.app.job_access.picture_response import picture_response
from denoised.app.job_access.waiting import CLIENT_CLOSED_REQUEST, wait_for_job
from denoised.app.services import Owner, Serving
from denoised.jobs.control import MAX_CONTROLS, control_picture
from denoised.jobs.numerics import computation, digest_in
from denoised.jobs.request_pictures import PICTURE_FIELDS
from denoised.jobs.store.store import Outcome

router = APIRouter(tags=["jobs"])

PNG_SIZE = slice(12, 24)  # of a PNG's bytes: "IHDR", width, height
PNG_BIT_DEPTH = slice(24, 25)

_PROBLEM: dict[str, Any] = {"model": ProblemObject, "content": {"application/problem+json": {}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Verification, "description": "Made again; `match` says whether the bytes are equal."},
    409: {**_PROBLEM, "description": "The picture could not be made again: the job failed or was canceled."},
    415: {**_PROBLEM, "description": "The body is not a PNG."},
    422: {**_PROBLEM, "description": "The PNG carries no request, or the model does not accept its request."},
    429: {**_PROBLEM, "description": "The queue is full; see `Retry-After`."},
    503: {**_PROBLEM, "description": "No worker serves the model, or Redis is away."},
    504: {
        **_PROBLEM,
        "description": "Not ready in time; `job` continues, and the same Idempotency-Key finds it again.",
    },
}


@router.post("/verify", responses=RESPONSES, summary="Make a picture again and compare")
async def verify(
    body: Annotated[
        bytes,
        Body(
            media_type="image/png",
            description="a PNG from `POST /generate`; or a form with it as `picture`, and as `image`, `mask` and "
            "`controls.K.image` the files that it was made from",
        ),
    ],
    request: Request,
    services: Serving,
    owner: Owner,
    prefer: Annotated[str | None, Header(description="`wait=S`: give up after S seconds")] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Read the request that a PNG carries, submit it as `POST /generate` would, wait for the job, and compare the two
    files. If you disconnect early, the job is canceled, unless you sent an Idempotency-Key."""
    inputs: dict[str, bytes] = {}
    if is_form(request):
        body, inputs = _parts(await read_form(request))
    parameters = await run_in_threadpool(read_parameters, body)
    fields = with_given_files(parameters.fields(), inputs)
    wait = Preference.parse({"prefer": prefer or ""}, services.settings.max_wait).wait
    with services.streams.open(owner):
        record, _ = await run_in_threadpool(submit, services, fields, owner, idempotency_key)
        outcome = await wait_for_job(services, request, record, wait, pictures=1, cancel=idempotency_key is None)
    if outcome is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    verification = await run_in_threadpool(_compare, body, parameters, outcome)
    return JSONResponse(verification.model_dump(), headers={**job_location(record), **preference_applied(wait)})


def _parts(form: Mapping[str, str | bytes]) -> tuple[bytes, dict[str, bytes]]:
    """The picture of a form, and the files that it was made from by field.

    Raises:
        InvalidRequest: naming each part that is missing, unknown, or not a file.
    """
    allowed = ("picture", *PICTURE_FIELDS, *map(control_picture, range(MAX_CONTROLS)))
    errors = [
        (name[:80], f"is not a part of this form (allowed: {', '.join(allowed)})")
        for name in form
        if name not in allowed
    ]
    errors += [(name, "is not a file") for name, part in form.items() if name in allowed and isinstance(part, str)]
    if "picture" not in form:
        errors.append(("picture", "is missing"))
    if errors:
        raise InvalidRequest(errors)
    files = {name: part for name, part in form.items() if isinstance(part, bytes)}
    return files.pop("picture"), files


def _compare(given: bytes, parameters: PictureParameters, outcome: Outcome) -> Verification:
    """Compare the given file with the job's picture. Slow.

    Raises:
        Conflict: when the job made no picture.
    """
    record = outcome.record
    if record.status != "succeeded":
        cause = f" ({record.error['message']})" if record.error else ""
        raise Conflict(f"the picture was not made again: job {record.id} {record.status}{cause}", job=record.id)
    expected = bytes(picture_response(outcome, 0).body)
    same_bytes, pixels_match = given == expected, same_pixels(given, expected)
    return Verification.model_validate(
        {
            "match": same_bytes,
            "pixels_match": pixels_match is True,
            "reason": None if same_bytes else _difference(pixels_match, parameters.numerics, record.numerics or ""),
            "sha256": hashlib.sha256(given).hexdigest(),
            "expected_sha256": hashlib.sha256(expected).hexdigest(),
            "numerics": {"picture": parameters.numerics, "here": record.numerics},
            "request": parameters.model_dump(exclude={"numerics"}, exclude_unset=True),
            "job": record.id,
        }
    )


def same_pixels(given: bytes, expected: bytes) -> bool | None:
    """Whether two PNGs have equal pixels; None when those of `given` cannot be read.

    A PNG of another size or with 16-bit samples differs without being decoded.
    """
    if given == expected:
        return True
    if given[PNG_SIZE] != expected[PNG_SIZE] or given[PNG_BIT_DEPTH] > expected[PNG_BIT_DEPTH]:
        return False
    with Image.open(io.BytesIO(expected), formats=["PNG"]) as image:
        size, pixels = image.size, image.convert("RGBA").tobytes()
    try:
        with Image.open(io.BytesIO(given), formats=["PNG"]) as image:
            # The size is checked again, because Pillow believes the last of several IHDR chunks.
            return image.size == size and image.convert("RGBA").tobytes() == pixels
    except Exception:  # Pillow's decoders raise a dozen kinds of exceptions for damaged files
        return None


def _difference(pixels_match: bool | None, given: str, here: str) -> str:
    """Why the bytes differ, in one sentence. given, here: the numerics of the file and of the picture made again."""
    if pixels_match is None:
        return "the file is damaged: its pixels cannot be read"
    if given == here:
        if pixels_match:
            return "same pixels, different file: it was re-saved or edited"
        other = "" if digest_in(here) else ", or the model of that name is a different one"
        return f"the numerics are equal, so the picture or its request was changed after it was made{other}"
    theirs, ours = digest_in(given), digest_in(here)
    if theirs and ours and theirs != ours:
        subject = "same pixels, but the file" if pixels_match else "the picture"
        return f"{subject} was made by another model of that name (digest {theirs}; here {ours})"
    if pixels_match and computation(given) == computation(here):
        return "same pixels, different file: another version of denoised wrote it"
    subject = "same pixels, but the file was" if pixels_match else "the picture was"
    return f"{subject} made under {given}, here under {here}: only equal numerics guarantee equal bytes"
