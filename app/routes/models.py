"""`GET /models`: the models that take jobs."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from denoised.app.http.schemas import ModelObject
from denoised.app.services import Serving

router = APIRouter(tags=["operations", "models"])


@router.get("/models", response_model=list[ModelObject], summary="Models that take jobs")
def models(services: Serving) -> Response:
    """The models that live workers serve; the first is the default. Where the server accepts jobs without a worker
    (`DENOISED_QUEUE_WITHOUT_WORKER`), models that were served before are listed, too, with 0 `workers`."""
    return JSONResponse(services.catalog.listing())
