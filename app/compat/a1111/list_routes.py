"""What AUTOMATIC1111's web UI lists: models, samplers, schedules, adapters and options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import JsonValue
from starlette.responses import JSONResponse, Response

from denoised.app.admission.validation import choose_card
from denoised.app.compat.a1111.a1111_schemas import (
    LoraItem,
    ModelItem,
    SamplerItem,
    SchedulerItem,
    ScriptInfo,
    ScriptList,
    WebUIError,
)
from denoised.app.compat.a1111.checkpoints import OPTION, choose_model, short_hash, title
from denoised.app.compat.a1111.controlnet_units import SCRIPT
from denoised.app.compat.a1111.errors import PREFIX
from denoised.app.compat.a1111.refusals import plain_name, refuse
from denoised.app.compat.a1111.sampler_names import AUTOMATIC, samplers_of, schedules_of
from denoised.app.http.requests.json_body import JsonRoute
from denoised.app.http.validation_errors import format_value
from denoised.app.services import Owner, Services, Serving

router = APIRouter(prefix=f"{PREFIX}/v1", tags=["a1111"], route_class=JsonRoute)

# What the web UI has and this server has none of.
EMPTY: Mapping[str, JsonValue] = {
    "embeddings": {"loaded": {}, "skipped": {}},
    "face-restorers": [],
    "hypernetworks": [],
    "latent-upscale-modes": [],
    "prompt-styles": [],
    "realesrgan-models": [],
    "sd-vae": [],
    "upscalers": [],
}
# The options besides the model; `POST /sdapi/v1/options` cannot change them.
OPTIONS: Mapping[str, JsonValue] = {
    "samples_format": "png",
    "CLIP_stop_at_last_layers": 1,
    "sd_vae": "Automatic",
    "eta_noise_seed_delta": 0,
}


@router.get("/sd-models", response_model=list[ModelItem], summary="Models that are served now, as checkpoints")
def sd_models(services: Serving) -> Response:
    """In the order of `GET /models`."""
    items = [
        ModelItem(
            title=title(card),
            model_name=card.name,
            hash=short_hash(card),
            sha256=None,
            filename=card.name,
            config=None,
        )
        for card in services.catalog.cards()
    ]
    return JSONResponse([item.model_dump() for item in items])


@router.get("/samplers", response_model=list[SamplerItem], summary="Samplers that some model offers")
def samplers(services: Serving) -> Response:
    """Under the web UI's names; a sampler that it lacks has the name that `POST /generate` takes."""
    items = [
        SamplerItem(
            name=each.name,
            aliases=list(each.aliases),
            options={"scheduler": each.schedule} if each.schedule != AUTOMATIC else {},
        )
        for each in samplers_of(services.catalog.cards())
    ]
    return JSONResponse([item.model_dump() for item in items])


@router.get("/schedulers", response_model=list[SchedulerItem], summary="Schedules that some model offers")
def schedulers(services: Serving) -> Response:
    """What the web UI calls schedulers: the noise levels that a sampler visits."""
    items = [
        SchedulerItem(
            name=each.name,
            label=each.label,
            aliases=list(each.aliases) or None,
            default_rho=each.rho,
            need_inner_model=False,
        )
        for each in schedules_of(services.catalog.cards())
    ]
    return JSONResponse([item.model_dump() for item in items])


@router.get("/loras", response_model=list[LoraItem], summary="Adapters that some model offers")
def loras(services: Serving) -> Response:
    """A prompt uses one with `<lora:NAME:WEIGHT>`. Empty if no model has any."""
    names = dict.fromkeys(lora.name for card in services.catalog.cards() for lora in card.loras)
    items = [LoraItem(name=name, alias=name, path=name, metadata={}) for name in names]
    return JSONResponse([item.model_dump() for item in items])


@router.get("/scripts", response_model=ScriptList, summary="Scripts that `alwayson_scripts` can name")
def scripts(services: Serving) -> Response:
    """`controlnet` if some model offers a ControlNet; no other script is served."""
    names = [SCRIPT] if _offers_controls(services) else []
    return JSONResponse(ScriptList(txt2img=names, img2img=names).model_dump())


@router.get("/script-info", response_model=list[ScriptInfo], summary="What the scripts take")
def script_info(services: Serving) -> Response:
    """Each script for `txt2img` and for `img2img`, as in the web UI; its units are not listed."""
    if not _offers_controls(services):
        return JSONResponse([])
    items = [ScriptInfo(name=SCRIPT, is_alwayson=True, is_img2img=is_img2img, args=[]) for is_img2img in (False, True)]
    return JSONResponse([item.model_dump() for item in items])


@router.get("/options", response_model=dict[str, JsonValue], summary="Your options")
def get_options(services: Serving, owner: Owner) -> Response:
    """The model that your requests use if they name none, and what this server always does."""
    return JSONResponse(_options(services, owner))


@router.post("/options", responses={422: {"model": WebUIError}}, response_model=None, summary="Choose your model")
def set_options(options: dict[str, Any], services: Serving, owner: Owner) -> Response:
    """`sd_model_checkpoint` sets the model of your requests that name none, for your API key alone (without keys: for
    all programs on this machine). Every other option can only be given the value that it has."""
    refuse(list(_fixed_option_errors(options)))
    if options.get(OPTION):
        choose_model(services, owner, options[OPTION])
    return JSONResponse(None)


def _offers_controls(services: Services) -> bool:
    return any(card.controls for card in services.catalog.cards())


def _options(services: Services, owner: str) -> dict[str, JsonValue]:
    fleet, chosen = services.catalog.fleet(), services.store.model_choices.chosen(owner)
    if chosen is not None and chosen not in [card.name for card in fleet.cards]:
        return {OPTION: chosen, "sd_checkpoint_hash": None, **OPTIONS}  # no worker serves it now
    card = choose_card(chosen, fleet.cards, fleet.known)
    return {OPTION: title(card), "sd_checkpoint_hash": card.digest or None, **OPTIONS}


def _fixed_option_errors(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options that the client wants to change and cannot."""
    for name, value in options.items():
        if name in (OPTION, "sd_checkpoint_hash") or not value or value == OPTIONS.get(name):
            continue
        allowed = format_value(OPTIONS.get(name))
        message = f"{format_value(value)} was given, but only {OPTION} can be set here (allowed: {allowed})"
        yield plain_name(name), message


def _empty_list(name: str, content: JsonValue) -> Callable[[], Response]:
    def respond() -> Response:
        return JSONResponse(content)

    respond.__doc__ = "Empty: this server has none."
    respond.__name__ = name.replace("-", "_")
    return respond


for _name, _content in EMPTY.items():
    router.add_api_route(f"/{_name}", _empty_list(_name, _content), methods=["GET"], summary=f"No {_name}")
