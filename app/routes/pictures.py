"""`GET /jobs/{id}/images/{k}`: the pictures of a job."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from denoised.app.http.headers import IfNoneMatch
from denoised.app.http.requests.negotiation import etag_matches
from denoised.app.http.schemas import ProblemObject
from denoised.app.job_access.lookup import PathJob
from denoised.app.job_access.picture_response import linked_picture_response, stored_picture_response
from denoised.app.services import Serving
from denoised.jobs.request_choices import MEDIA_TYPES

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/images/{index}",
    responses={
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}, "description": "The bytes."},
        307: {"description": "The picture is at `Location`, on servers with DENOISED_RESULT_LINKS."},
        304: {"description": "`If-None-Match` contains the ETag of this picture."},
        404: {
            "model": ProblemObject,
            "content": {"application/problem+json": {}},
            "description": "Unknown, expired, or another caller's.",
        },
    },
    response_class=Response,
    summary="A picture",
)
def get_image(record: PathJob, index: int, services: Serving, if_none_match: IfNoneMatch = None) -> Response:
    """Picture `index` of a job, available as soon as it is finished. Its ETag is its SHA-256.

    If the server keeps pictures in a bucket and was asked to, it redirects to a link that is valid for a while."""
    if (link := linked_picture_response(services, record, index, if_none_match)) is not None:
        return link
    response = stored_picture_response(services, record, index)
    if etag_matches(if_none_match, response.headers["etag"]):
        return Response(status_code=304, headers={"ETag": response.headers["etag"]})
    return response
