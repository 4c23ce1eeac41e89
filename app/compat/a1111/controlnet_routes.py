"""`GET /controlnet/model_list` and `module_list`, as the ControlNet extension of AUTOMATIC1111's web UI has them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from denoised.app.compat.a1111.a1111_schemas import ControlModelList, ControlModuleList
from denoised.app.compat.a1111.controlnet_units import NONE, listed_name
from denoised.app.compat.a1111.errors import CONTROLNET_ERRORS
from denoised.app.http.requests.json_body import JsonRoute
from denoised.app.services import Serving

router = APIRouter(prefix=CONTROLNET_ERRORS.prefix, tags=["a1111"], route_class=JsonRoute)


@router.get("/model_list", response_model=ControlModelList, summary="ControlNets that some model offers")
def model_list(
    services: Serving, update: Annotated[bool, Query(description="has no effect: the list is of now")] = True
) -> Response:
    """As a unit's `model` names them: `name [hash]`. Empty if no model has any."""
    found = dict.fromkeys(listed_name(each) for card in services.catalog.cards() for each in card.controls)
    return JSONResponse(ControlModelList(model_list=list(found)).model_dump())


@router.get("/module_list", response_model=ControlModuleList, summary="Preprocessors of ControlNets: none")
def module_list(
    alias_names: Annotated[bool, Query(description="has no effect: the name has no alias")] = False,
) -> Response:
    """A control picture is not preprocessed."""
    return JSONResponse(ControlModuleList(module_list=[NONE]).model_dump())
