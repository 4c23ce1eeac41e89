"""The response that contains a picture of a job."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from denoised.app.http.errors import NotFound
from denoised.app.http.requests.negotiation import etag_matches
from denoised.app.services import Services
from denoised.jobs.record import JobRecord
from denoised.jobs.request_choices import MEDIA_TYPES
from denoised.jobs.store.store import Outcome


def stored_picture_response(services: Services, record: JobRecord, index: int) -> Response:
    """Read a finished picture from the store. Blocking.

    Raises:
        NotFound: when the job has no such picture, or not yet.
    """
    data = services.store.image(record.id, index)
    return picture_response(Outcome(record, {} if data is None else {index: data}), index)


def linked_picture_response(
    services: Services, record: JobRecord, index: int, if_none_match: str | None
) -> Response | None:
    """A redirect to a picture in a bucket; None if the server sends it, or the client has it. Blocking."""
    seconds = services.settings.results.link_seconds
    image = next((image for image in record.images if image.index == index), None)
    if not seconds or image is None or etag_matches(if_none_match, f'"{image.sha256}"'):
        return None
    media_type, name = MEDIA_TYPES[image.format], f"{image.seed}.{image.format}"
    link = services.store.image_link(record.id, index, seconds, media_type, name)
    if link is None:
        return None
    # A client must not keep a link longer than it is valid.
    headers = {"ETag": f'"{image.sha256}"', "Cache-Control": "private, no-store"}
    return RedirectResponse(link, headers=headers)


def picture_response(outcome: Outcome, index: int) -> Response:
    """A picture that was read together with the job.

    Raises:
        NotFound: when the job has no such picture, or not yet.
    """
    record, data = outcome.record, outcome.pictures.get(index)
    image = next((image for image in record.images if image.index == index), None)
    if image is None or data is None:
        raise NotFound(f"job {record.id} ({record.status}) has no image {index}")
    headers = {
        "ETag": f'"{image.sha256}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=86400, immutable",
        "Content-Disposition": f'inline; filename="{image.seed}.{image.format}"',
    }
    return Response(data, media_type=MEDIA_TYPES[image.format], headers=headers)
