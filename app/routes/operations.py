"""What is served, whether the process lives, whether it is ready; tickets for browsers."""

from __future__ import annotations

import secrets

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from denoised.app.http.api_keys import key_hash
from denoised.app.http.schemas import ModelObject, Readiness
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.errors import StoreUnavailable

router = APIRouter(tags=["operations"])

TICKET_SECONDS = 30


class Health(BaseModel):
    status: str


class Ticket(BaseModel):
    """Good for one WebSocket."""

    ticket: str
    expires_in: int


@router.get("/models", response_model=list[ModelObject], tags=["models"], summary="Models that are served now")
def models(services: Serving) -> Response:
    """The models that live workers serve; the first is the default."""
    return JSONResponse(services.catalog.listing())


@router.get("/healthz", response_model=Health, summary="Whether the process lives")
async def healthz() -> Response:
    """Never waits on anything."""
    return JSONResponse({"status": "ok"})


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "`reasons`: redis, no_worker, draining"}},
    summary="Whether a picture can be had now",
)
def readyz(services: Serving) -> Response:
    """200, or 503 with the reasons."""
    reasons = _reasons(services)
    return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)


@router.post("/tickets", response_model=Ticket, summary="A ticket for one WebSocket")
def tickets(services: Serving, owner: Owner) -> Response:
    """Browsers cannot send a key with a WebSocket: they append `?ticket=` instead, once, within 30 s."""
    ticket = secrets.token_urlsafe(24)
    services.store.tickets.issue(key_hash(ticket), owner, TICKET_SECONDS)
    return JSONResponse({"ticket": ticket, "expires_in": TICKET_SECONDS})


def _reasons(services: Services) -> list[str]:
    reasons = ["draining"] if services.draining else []
    try:
        services.store.ping()
        if not services.catalog.workers():
            reasons.append("no_worker")
    except StoreUnavailable:
        reasons.append("redis")
    return reasons
