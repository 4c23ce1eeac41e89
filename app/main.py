"""The front end, put together. Never torch: it validates, queues and relays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import errors, events, films, generate, jobs, metrics, operations, page, v1, verify, workers
from app.access import Access
from app.guard import Guard
from app.head import Head
from app.openapi import DescribedAPI
from app.origins import Origins
from app.services import Services
from app.settings import ApiSettings

DESCRIPTION = """Serves noise-predicting diffusion models. Post a request, get a job; follow its events while
the picture appears out of noise; fetch the picture. The same request and seed give the same bytes under the
same `numerics` string."""


def create_app(settings: ApiSettings) -> FastAPI:
    """The ASGI application; connects to Redis only when the first request needs it."""
    services = Services.connected(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.relay.start()
        yield
        await services.relay.stop()

    app = DescribedAPI(
        title="denoised",
        summary="The denoising daemon",
        description=DESCRIPTION,
        version="0.1.0",
        docs_url=None,  # FastAPI's own page fetches its script from elsewhere; `app.page` has ours
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.services = services
    errors.install(app)
    for module in (generate, verify, jobs, films, page, events, operations, workers, v1, metrics):
        app.include_router(module.router)
    app.add_middleware(Head)
    app.add_middleware(Guard, settings=settings, store=services.store)
    if settings.allowed_origins:
        app.add_middleware(Origins, allowed=settings.allowed_origins)
    app.add_middleware(Access, meters=services.meters)
    return app
