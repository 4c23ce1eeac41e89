"""The noise levels that a request asks for, checked against the model's card."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from denoised.app.http.validation_errors import format_value, join_names
from denoised.jobs.request import MAX_LEVELS
from denoised.jobs.request_choices import TIMESTEP_SPACINGS
from denoised.model.serving.card import CardGrid, ModelCard

UNIFORM = "sgm_uniform"
LEARNED = "learned"  # fitted to a sampler and a number of steps of the model
UNBOUNDED = (UNIFORM, "ays_sd", "ays_sdxl", LEARNED)  # spacings of levels that have no bounds to choose
# Levels that are closer make steps of rounding error; the same as in `model.diffusion.spacings`.
MIN_BOUNDS_RATIO, MIN_LEVEL_RATIO = 1.01, 1 + 1e-7
STARTS_OF_ITS_OWN = ("edm", "geometric", *UNBOUNDED)  # whatever the timesteps
CHOICES = ("spacing", "karras", "sigma_min", "sigma_max")

Errors = Iterator[tuple[str, str]]


def without_end(sigmas: Sequence[float]) -> list[float]:
    """The levels without a 0 at the end, which every plan has, as floats."""
    return [float(sigma) for sigma in (sigmas[:-1] if len(sigmas) > 1 and sigmas[-1] == 0 else sigmas)]


def spacing_of_levels(spacing: str | None, karras: bool | None, grid: CardGrid) -> str | None:
    """The spacing between timesteps that a request has on a model; None if it visits timesteps.

    The same rule as in `model.diffusion.level_choice`.
    """
    if karras:
        return "karras"
    if spacing is not None and spacing not in TIMESTEP_SPACINGS:
        return spacing
    own = "karras" if grid.karras else grid.ratio_spacing
    if own == "karras":
        return None if karras is False else own
    return own if spacing is None else None


def level_errors(given: Mapping[str, Any], card: ModelCard) -> Errors:
    """Spacings that contradict each other, and levels outside the model's range."""
    spacing, karras = given.get("spacing"), given.get("karras")
    if spacing is not None and spacing not in card.spacings:
        yield "spacing", f"{format_value(spacing)} is not offered by {card.name} (offered: {join_names(card.spacings)})"
    contradicts = spacing is not None and spacing not in TIMESTEP_SPACINGS and karras is not None
    if contradicts and karras != (spacing == "karras"):
        allowed = join_names(["karras", *TIMESTEP_SPACINGS] if karras else list(TIMESTEP_SPACINGS))
        yield "karras", f"{format_value(karras)} contradicts spacing = {format_value(spacing)} (allowed: {allowed})"
    if given.get("sigmas") is None:
        yield from _bound_errors(given, card)
        return
    for name in CHOICES:
        if given.get(name) is not None:
            yield (
                name,
                f"{format_value(given[name])} was given with sigmas, which name all levels",
            )
    yield from _sigma_errors(without_end(given["sigmas"]), given.get("steps"), card.grid)


def learned_errors(values: Mapping[str, Any], card: ModelCard) -> Errors:
    """The spacing `learned` for a sampler or a number of steps that no levels were fitted for.

    values: the fields of the request, defaults filled in.
    """
    sampler, steps = values["sampler"], values["steps"]
    if values.get("spacing") != LEARNED or LEARNED not in card.spacings or card.learned_sigmas(sampler, steps):
        return
    fitted = join_names([f"{each.sampler} in {len(each.sigmas)} steps" for each in card.grid.learned])
    yield "spacing", f'"learned" has no levels for {sampler} in {steps} steps (allowed with: {fitted})'


def _bound_errors(given: Mapping[str, Any], card: ModelCard) -> Errors:
    bounds = {name: given[name] for name in ("sigma_min", "sigma_max") if given.get(name) is not None}
    spacing = spacing_of_levels(given.get("spacing"), given.get("karras"), card.grid)
    if bounds and spacing in (None, *UNBOUNDED):
        bounded = [name for name in card.spacings if name not in (*TIMESTEP_SPACINGS, *UNBOUNDED)]
        for name, value in bounds.items():
            yield name, f"{value:g} needs a spacing with bounds (one of: {join_names(bounded) or 'none'})"
        return
    for name, value in bounds.items():
        yield from ((name, message) for message in outside_levels(value, card.grid))
    low = bounds.get("sigma_min", card.grid.sigma_min)
    high = bounds.get("sigma_max", card.grid.sigma_max)
    if bounds and low is not None and high is not None and MIN_BOUNDS_RATIO * low > high:
        name, other = ("sigma_min", f"sigma_max = {high:g}") if "sigma_min" in bounds else ("sigma_max", f"{low:g}")
        relation = "below" if name == "sigma_min" else "above"
        yield name, f"{bounds[name]:.10g} is not {relation} {other} by a factor of {MIN_BOUNDS_RATIO}"


def _sigma_errors(sigmas: Sequence[float], steps: int | None, grid: CardGrid) -> Errors:
    if len(sigmas) > MAX_LEVELS:
        yield "sigmas", f"{len(sigmas)} levels are too many (allowed: {MAX_LEVELS}, and a 0 at the end)"
    if steps is not None and steps != len(sigmas):
        yield "steps", f"{steps} is not the number of sigmas (allowed: {len(sigmas)}, or left out)"
    for before, after in itertools.pairwise(sigmas):
        if before < MIN_LEVEL_RATIO * after:
            yield "sigmas", f"{after:g} after {before:g} does not fall (allowed: from the noisiest level down)"
            return
    for sigma in (sigmas[0], sigmas[-1]):
        for message in outside_levels(sigma, grid):
            yield "sigmas", message
            return


def outside_levels(sigma: float, grid: CardGrid) -> Iterator[str]:
    low, high = grid.sigma_min, grid.sigma_max
    if low is not None and high is not None and not low <= sigma <= high:
        yield f"{sigma:g} is outside the model's noise levels (allowed: {low:.6g} … {high:.6g})"
