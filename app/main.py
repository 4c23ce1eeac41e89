"""Assembles the front end. It never imports torch: it validates, queues and relays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from denoised.app.compat.a1111 import controlnet_routes as a1111_controlnet_routes
from denoised.app.compat.a1111 import list_routes as a1111_list_routes
from denoised.app.compat.a1111 import routes as a1111_routes
from denoised.app.compat.a1111.errors import A1111_ERRORS, CONTROLNET_ERRORS
from denoised.app.compat.openai import routes as openai_routes
from denoised.app.compat.openai.errors import OPENAI_ERRORS
from denoised.app.http import error_responses
from denoised.app.http.error_formats import ErrorFormats
from denoised.app.http.middleware.acceptance import AcceptMiddleware
from denoised.app.http.middleware.auth import AuthMiddleware
from denoised.app.http.middleware.cors import CrossOriginMiddleware
from denoised.app.http.middleware.head import HeadMiddleware
from denoised.app.http.middleware.request_context import RequestContextMiddleware
from denoised.app.http.openapi import DocumentedAPI
from denoised.app.http.requests.query_parameters import check_query
from denoised.app.routes import (
    animation,
    arrays,
    events,
    generate,
    jobs,
    metrics,
    model_orders,
    models,
    operations,
    pages,
    pictures,
    tasks,
    usage,
    verify,
    webhooks,
    workers,
)
from denoised.app.services import Services
from denoised.app.settings import ApiSettings

DESCRIPTION = """Serves noise-predicting diffusion models. Submit a request to get a job, follow its events while the
picture emerges from noise, and fetch the picture. The same request and seed give the same bytes under the same
`numerics` string."""
ROUTES = (
    generate,
    tasks,
    verify,
    jobs,
    webhooks,
    pictures,
    arrays,
    animation,
    pages,
    events,
    models,
    model_orders,
    operations,
    usage,
    workers,
    openai_routes,
    a1111_routes,
    a1111_list_routes,
    a1111_controlnet_routes,
    metrics,
)


def create_app(settings: ApiSettings) -> FastAPI:
    """The ASGI application. It connects to Redis when the first request needs it."""
    services = Services.create(settings)
    formats = ErrorFormats([OPENAI_ERRORS, A1111_ERRORS, CONTROLNET_ERRORS])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.relay.start()
        services.start_sweeper()
        services.webhooks.start()
        watching = services.watch_keys()
        yield
        watching.cancel()
        services.stop_sweeper()
        await run_in_threadpool(services.webhooks.stop)
        await services.relay.stop()

    app = DocumentedAPI(
        title="denoised",
        summary="The denoising daemon",
        description=DESCRIPTION,
        version="0.1.0",
        docs_url=None,  # FastAPI's page loads its script from another site; `app.routes.pages` serves ours
        redoc_url=None,
        lifespan=lifespan,
        dependencies=[Depends(check_query)],
    )
    app.state.services = services
    app.state.error_formats = formats
    error_responses.install(app, formats)
    app.webhooks.include_router(webhooks.sent)
    for module in ROUTES:
        app.include_router(module.router)
    # The last one is the outermost.
    app.add_middleware(HeadMiddleware)
    app.add_middleware(AcceptMiddleware, formats=formats)
    app.add_middleware(
        AuthMiddleware,
        settings=settings,
        keys=services.keys,
        store=services.store,
        formats=formats,
        basic_prefixes=(A1111_ERRORS.prefix, CONTROLNET_ERRORS.prefix),
    )
    if settings.allowed_origins:
        app.add_middleware(CrossOriginMiddleware, origins=settings.allowed_origins)
    app.add_middleware(RequestContextMiddleware, metrics=services.metrics, formats=formats)
    return app
