"""Health checks, and tickets for the WebSockets of browsers."""

from __future__ import annotations

import secrets

import redis
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from denoised.app.http.api_keys import key_hash
from denoised.app.http.live_keys import KEY
from denoised.app.http.schemas import Readiness
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.errors import StoreUnavailable

router = APIRouter(tags=["operations"])

TICKET_SECONDS = 30


class Health(BaseModel):
    status: str


class Ticket(BaseModel):
    """Valid for one WebSocket handshake."""

    ticket: str
    expires_in: int


@router.get("/healthz", response_model=Health, summary="Liveness")
async def healthz() -> Response:
    """200 while the process lives; it does not depend on Redis."""
    return JSONResponse({"status": "ok"})


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={
        503: {"model": Readiness, "description": "`reasons`: redis, redis_read_only, no_worker, events, draining"}
    },
    summary="Readiness",
)
def readyz(services: Serving) -> Response:
    """200 when a job can be accepted and run; otherwise 503 with the reasons: Redis does not answer (`redis`) or is a
    read-only replica (`redis_read_only`), no worker is alive (`no_worker`; where jobs are accepted without one, only
    until a first one has been), events no longer arrive in this process (`events`), or it is shutting down
    (`draining`)."""
    reasons = _reasons_not_ready(services)
    return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)


@router.post("/tickets", response_model=Ticket, summary="A ticket for one WebSocket")
def tickets(services: Serving, owner: Owner) -> Response:
    """Browsers cannot send an API key with a WebSocket handshake. They append `?ticket=` to its URL instead, once,
    within 30 s."""
    ticket = secrets.token_urlsafe(24)
    services.store.tickets.issue(key_hash(ticket), f"{owner} {KEY.get()}".strip(), TICKET_SECONDS)
    return JSONResponse({"ticket": ticket, "expires_in": TICKET_SECONDS})


def _reasons_not_ready(services: Services) -> list[str]:
    reasons = ["draining"] if services.draining else []
    if not services.relay.alive:
        reasons.append("events")
    try:
        services.store.check_writable()
        fleet = services.catalog.fleet()
        if not fleet.workers and not fleet.cards:
            reasons.append("no_worker")
    except StoreUnavailable as error:
        read_only = isinstance(error.__cause__, redis.exceptions.ReadOnlyError)
        reasons.append("redis_read_only" if read_only else "redis")
    return reasons
