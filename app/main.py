"""The front end, put together. Never torch: it validates, queues and relays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from denoised.app.compat.openai import routes as v1
from denoised.app.http import errors
from denoised.app.http.auth import AuthMiddleware
from denoised.app.http.cors import CorsMiddleware
from denoised.app.http.head import HeadMiddleware
from denoised.app.http.openapi import DescribedAPI
from denoised.app.http.request_context import RequestContextMiddleware
from denoised.app.routes import animation as films
from denoised.app.routes import events, generate, jobs, metrics, operations, verify, workers
from denoised.app.routes import pages as page
from denoised.app.services import Services
from denoised.app.settings import ApiSettings

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
        docs_url=None,  # FastAPI's own page fetches its script from elsewhere; `app.routes.pages` has ours
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.services = services
    errors.install(app)
    for module in (generate, verify, jobs, films, page, events, operations, workers, v1, metrics):
        app.include_router(module.router)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(AuthMiddleware, settings=settings, store=services.store)
    if settings.allowed_origins:
        app.add_middleware(CorsMiddleware, allowed=settings.allowed_origins)
    app.add_middleware(RequestContextMiddleware, meters=services.meters)
    return app
