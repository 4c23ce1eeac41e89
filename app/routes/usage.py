"""`GET /usage`: the quotas of a key, and what is left of them; `GET /usage/keys`: those of all keys, for operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from denoised.app.admission.quotas import COUNTED
from denoised.app.http.errors import Forbidden
from denoised.app.http.schemas import ProblemObject
from denoised.app.services import Owner, Services, Serving
from denoised.jobs.store.usage import CallerUsage

router = APIRouter(tags=["operations"])


class QuotaObject(BaseModel):
    """One quota. `allowed` and `left` are null where nothing is limited."""

    name: str
    allowed: int | None
    used: int
    left: int | None
    resets_in: Annotated[
        float | None,
        Field(description="seconds until some of it is free again; null where that depends on the workers"),
    ]


class UsageObject(BaseModel):
    """What a key may use. Waiting work is counted now, evaluations when they are accepted."""

    key: Annotated[str, Field(description="the name of the key; empty without API keys")]
    weight: Annotated[float, Field(description="callers that wait are served in proportion to it")]
    quotas: list[QuotaObject]


class AllUsageObject(BaseModel):
    """What all callers use; those that neither wait nor have used anything are left out."""

    keys: list[UsageObject]


class Waiting:
    """The waiting jobs and evaluations by caller."""

    def __init__(self, services: Services) -> None:
        self.jobs, self.evaluations = Counter[str](), Counter[str]()
        for jobs in services.queue.snapshot(services.catalog.fleet().known).waiting.values():
            for job in jobs:
                self.jobs[job.owner] += 1
                self.evaluations[job.owner] += job.request.evaluations


@router.get("/usage", responses={200: {"model": UsageObject}}, summary="Your quotas")
def usage(services: Serving, owner: Owner) -> Response:
    """Your quotas and what is left of them. A request beyond one gets a 429 whose `quota` names it."""
    return JSONResponse(_usage(services, owner, Waiting(services)))


@router.get(
    "/usage/keys",
    responses={200: {"model": AllUsageObject}, 403: {"model": ProblemObject, "description": "Not an operator's key."}},
    summary="The quotas of all keys",
)
def all_usage(services: Serving, owner: Owner) -> Response:
    """The quotas of all keys, for keys with the option `operator`, and without API keys."""
    if services.keys.required and not services.keys.limits(owner).operator:
        raise Forbidden("this key may see its own usage only (GET /usage); an operator's line in the key file says so")
    waiting = Waiting(services)
    names = sorted({*services.keys.current.names.values(), *waiting.jobs})
    found = [_usage(services, name, waiting) for name in names]
    return JSONResponse({"keys": [each for each in found if any(quota["used"] for quota in each["quotas"])]})


def _usage(services: Services, owner: str, waiting: Waiting) -> dict[str, Any]:
    limits = services.keys.limits(owner)
    quotas = list(_waiting_quotas(services, owner, waiting))
    if owner:
        used = services.store.usage.read(owner)
        allowed = (limits.per_minute, limits.per_day, limits.images)
        quotas += _counted_quotas(used, allowed)
    return {"key": owner, "weight": limits.weight, "quotas": quotas}


def _waiting_quotas(services: Services, owner: str, waiting: Waiting) -> Iterator[dict[str, Any]]:
    """Of a key; without keys, of everybody together."""
    if not services.keys.required:
        yield _quota("jobs", services.settings.max_queue, waiting.jobs.total())
        yield _quota("evaluations", services.settings.queue_limit, waiting.evaluations.total())
        return
    jobs, evaluations = services.admission.waiting_limits(services.keys.limits(owner))
    yield _quota("jobs_per_key", jobs, waiting.jobs[owner])
    yield _quota("evaluations_per_key", evaluations, waiting.evaluations[owner])
    yield _quota("streams_per_key", services.streams.allowed, services.streams.used(owner))


def _counted_quotas(usage: CallerUsage, allowed: tuple[int | None, ...]) -> Iterator[dict[str, Any]]:
    for name, most, used in zip(COUNTED, allowed, (usage.minute, usage.day, usage.images), strict=True):
        yield _quota(name, most, used.count, used.resets_in if used.count else None)


def _quota(name: str, allowed: int | None, used: int, resets_in: float | None = None) -> dict[str, Any]:
    left = None if allowed is None else max(0, allowed - used)
    resets = None if resets_in is None else round(resets_in, 1)
    return {"name": name, "allowed": allowed, "used": used, "left": left, "resets_in": resets}
