"""`PUT /models/{name}`, `DELETE /models/{name}` and `POST /models/{name}/reload`: what operators order about models.

An order is stored in Redis; the workers follow it within about a second, and later ones when they start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from denoised.app.http.errors import NotFound
from denoised.app.http.operators import check_operator
from denoised.app.http.schemas import ProblemObject
from denoised.app.http.validation_errors import format_value
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.store.models.model_list import StoredOrder

router = APIRouter(tags=["operations", "models"])

log = logging.getLogger("denoised.api")


class ModelOrderObject(BaseModel):
    """What was ordered about a model. `GET /workers` shows under `states` how far each worker is with it."""

    model: str
    removed: Annotated[bool, Field(description="no worker serves it, and its waiting jobs fail")]
    generation: Annotated[int, Field(description="how often something was ordered about it")]


RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": ModelOrderObject, "description": "The workers follow the order."},
    403: {"model": ProblemObject, "description": "Not an operator."},
    404: {"model": ProblemObject, "description": "No worker has, or ever had, a model of this name."},
}


@router.put("/models/{name}", status_code=202, responses=RESPONSES, summary="Serve a model again (operators)")
def add_model(services: Serving, owner: Owner, request: Request, name: str) -> Response:
    """Serve a model that was removed, or try again to load one that was refused. New folders need no order: workers
    find them in their models folder."""
    return _order(services, owner, request, name, services.store.workers.orders.add)


@router.delete("/models/{name}", status_code=202, responses=RESPONSES, summary="Remove a model (operators)")
def remove_model(services: Serving, owner: Owner, request: Request, name: str) -> Response:
    """Serve a model no more, on any worker, until it is added again. Its running jobs finish; its waiting jobs fail
    with the code `model_removed`. Its files stay."""
    return _order(services, owner, request, name, services.store.workers.orders.remove)


@router.post(
    "/models/{name}/reload", status_code=202, responses=RESPONSES, summary="Read a model's files again (operators)"
)
def reload_model(services: Serving, owner: Owner, request: Request, name: str) -> Response:
    """Load a model's folder again. Running jobs finish with the old weights; waiting jobs get the new ones, as soon as
    all workers that serve the model have loaded them. If the folder is refused, the old weights stay."""
    return _order(services, owner, request, name, services.store.workers.orders.reload)


def _order(
    services: Services, owner: str, request: Request, name: str, order: Callable[[str], StoredOrder]
) -> Response:
    check_operator(services.keys, owner, request)
    fleet = services.catalog.fleet()
    reported = {each["model"] for worker in fleet.workers for each in worker.states}
    if name not in {*reported, *fleet.known, *services.store.workers.orders.read()}:
        raise NotFound(f"no worker has, or ever had, a model {format_value(name)}")
    made = order(name)
    if made.removed:
        services.store.workers.kept.forget([name])
    log.info("model ordered", extra={"model": name, "removed": made.removed, "owner": owner})
    return JSONResponse({"model": name, "removed": made.removed, "generation": made.generation}, 202)
