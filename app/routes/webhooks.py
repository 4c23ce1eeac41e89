"""Webhooks: how their deliveries stand, the secrets that they are signed with, and what receivers get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from denoised.app.http.errors import NotFound
from denoised.app.http.schemas import JobObject, ProblemObject
from denoised.app.job_access.job_pages import JobFilter, PageCursor, PageLimit, read_page
from denoised.app.job_access.lookup import PathJob
from denoised.app.services import Owner, Services, Serving
from denoised.app.webhooks.signature import caller_secret
from denoised.jobs.record import JobRecord

router = APIRouter(tags=["jobs"])
sent = APIRouter()
"""What the server sends, for the OpenAPI document."""

_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": ProblemObject, "description": "The job has no webhook, or is unknown, expired or another caller's."}
}


class DeliveryObject(BaseModel):
    """How the delivery of a job's webhook stands."""

    job: Annotated[str, Field(description="id of the job")]
    url: str
    status: Annotated[
        Literal["waiting", "pending", "delivered", "failed"],
        Field(description="waiting: the job has not ended; pending: an attempt follows; failed: none follows"),
    ]
    attempts: Annotated[int, Field(description="that were begun")]
    last_attempt_at: Annotated[float | None, Field(description="when the latest attempt began")]
    last_response: Annotated[int | None, Field(description="HTTP status of the latest answer; null without one")]
    error: Annotated[str | None, Field(description="why the latest attempt failed")]
    next_attempt_at: Annotated[float | None, Field(description="when the next attempt is due, while one is pending")]


class DeliveryList(BaseModel):
    deliveries: list[DeliveryObject]
    next_cursor: Annotated[str | None, Field(description="`cursor` of the next page; null on the last")]


class SecretsObject(BaseModel):
    """The secrets that your webhooks are signed with."""

    secrets: Annotated[list[str], Field(description="`whsec_…`, the newest first; empty if no host is allowed")]


@router.get(
    "/jobs/{job_id}/webhook",
    responses={200: {"model": DeliveryObject}, **_NOT_FOUND},
    summary="The delivery of a job's webhook",
)
def get_delivery(record: PathJob, services: Serving) -> Response:
    """The latest attempt to deliver the webhook, and when the next one is due."""
    if record.request.webhook is None:
        raise NotFound(f"job {record.id} has no webhook")
    return JSONResponse(_deliveries(services, [record])[0])


@router.get("/webhooks", responses={200: {"model": DeliveryList}}, summary="The deliveries of your webhooks")
def list_deliveries(services: Serving, owner: Owner, limit: PageLimit = 20, cursor: PageCursor = None) -> Response:
    """One page of deliveries, those of the newest jobs first. A page may have fewer than `limit` deliveries, or none,
    and still not be the last one, whose `next_cursor` is null."""
    records, next_cursor = read_page(services, owner, limit, JobFilter(webhook=True), cursor)
    return JSONResponse({"deliveries": _deliveries(services, records), "next_cursor": next_cursor})


@router.get("/webhooks/secrets", responses={200: {"model": SecretsObject}}, summary="The secrets of your webhooks")
def list_secrets(services: Serving, owner: Owner) -> Response:
    """Webhooks have a signature of each, so a receiver that knows one of them can verify all. While the operator
    changes the secret there are two; move your receivers to the first."""
    secrets = [caller_secret(secret, owner) for secret in services.settings.webhooks.secrets]
    return JSONResponse({"secrets": secrets}, headers={"Cache-Control": "no-store"})


@sent.post(
    "job-ended",
    responses={
        200: {"description": "Any 2xx: it was received."},
        410: {"description": "No attempt follows."},
        503: {"description": "Any other status: another attempt follows, after `Retry-After` at the earliest."},
    },
    summary="A job has ended",
)
def job_ended(
    body: JobObject,
    webhook_id: Annotated[str, Header(description="the same in every attempt")],
    webhook_timestamp: Annotated[int, Header(description="of this attempt, in seconds since the epoch")],
    webhook_signature: Annotated[str, Header(description="`v1,` and a signature, for each secret; space-separated")],
) -> None:
    """The server posts the job to the `webhook` of its request, signed as the Standard Webhooks specification says."""


def _deliveries(services: Services, records: Sequence[JobRecord]) -> list[dict[str, Any]]:
    found = services.store.webhooks.deliveries([record.id for record in records])
    return [{"job": record.id, "url": record.request.webhook, **asdict(found[record.id])} for record in records]
