"""`GET /models`: the models that live workers serve."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from denoised.app.http.schemas import ModelObject
from denoised.app.services import Serving

router = APIRouter(tags=["operations", "models"])


@router.get("/models", response_model=list[ModelObject], summary="Models that are served now")
def models(services: Serving) -> Response:
    """The models that live workers serve; the first is the default."""
    return JSONResponse(services.catalog.listing())
