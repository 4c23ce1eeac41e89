"""A variation of a finished image: the request that made it, with a part of the same first noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from denoised.app.admission.input_pictures import JOB_PICTURE
from denoised.app.http.errors import InvalidRequest, NotFound
from denoised.app.http.validation_errors import format_value
from denoised.app.job_access.lookup import find_job
from denoised.app.services import Services
from denoised.jobs.record import JobRecord
from denoised.jobs.request import FIELDS, RequestFields
from denoised.jobs.sampling_request import without_defaults

KEPT_NOISE = 0.8  # `mix` of a variation
OF_ITS_OWN = ("n", "seed", "seed_to", "mix")  # fields of a variation that are not those of the image


def expand_variation(services: Services, fields: RequestFields, owner: str) -> RequestFields:
    """A request with the fields of the image that it varies; those that are given replace them. Blocking.

    Each image has noise of its own seed, and the share `mix` of the noise of the image that is varied.

    Raises:
        InvalidRequest: when `variation` names no finished image of the caller, or one whose noise is itself mixed.
    """
    text = fields.get("variation")
    if text is None:
        return fields
    record, index = _find(services, text, owner)
    request = record.request
    made = cast(RequestFields, {name: value for name, value in request.members().items() if name not in OF_ITS_OWN})
    given = {name: value for name, value in fields.items() if value is not None and name != "variation"}
    label = {} if request.label_name is None else {"label": request.label_name}
    mixed = {"seed_to": request.seed + index, "mix": KEPT_NOISE}
    return cast(RequestFields, {**_fields(without_defaults(made)), **label, **mixed, **given})


def _find(services: Services, text: str, owner: str) -> tuple[JobRecord, int]:
    match = JOB_PICTURE.fullmatch(text)
    if match is None:
        raise _wrong(text, "it names no image (allowed: job:ID/images/K)")
    try:
        record = find_job(services, match[1], owner)
    except NotFound as error:
        raise _wrong(text, error.detail) from error
    index = int(match[2])
    if index not in {image.index for image in record.images}:
        raise _wrong(text, f"job {record.id} ({record.status}) has no image {index}")
    if record.request.seed_to is not None:
        raise _wrong(text, "its noise is a mixture itself; vary the image that it was made from")
    return record, index


def _fields(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name in FIELDS}


def _wrong(text: str, message: str) -> InvalidRequest:
    return InvalidRequest([("variation", f"{format_value(text)}: {message}")])
