"""How many evaluations of a request lie within its `guidance_interval`, estimated from the model's card.

The worker's plan decides; it needs the noise schedule, which a card only sketches (`CardGrid.ratios`). The count here
is off by at most a step's evaluations at each end of the interval. Quotas and estimates use it.

Below, ρ = σ/α is the noise level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from denoised.app.admission.noise_levels import LEARNED, UNIFORM, spacing_of_levels
from denoised.jobs.request_choices import TIMESTEP_SPACINGS
from denoised.jobs.sampling_request import count_run_steps
from denoised.model.serving.card import CardGrid, ModelCard

KARRAS_EXPONENT = 7.0
OWN_BOUNDS = {"edm": (0.002, 80.0), "geometric": (0.1, 40.0)}  # as in `model.diffusion.spacings`
STEEP_RATIO, CAPPED_RATIO = 200.0, 20.0


def count_guided(values: Mapping[str, Any], card: ModelCard) -> int | None:
    """Evaluations of an image within the interval; None if guidance applies to all.

    values: the fields of a valid request, defaults filled in.
    """
    interval = values.get("guidance_interval")
    if interval is None or (values.get("sigmas") is None and len(card.grid.ratios) < 2):
        return None
    low, high = float(interval[0]), float(interval[1])
    levels = _levels(values, card)
    if values.get("image") is not None:
        levels = levels[len(levels) - count_run_steps(len(levels), values["strength"]) :]
    ratios = _evaluated(levels, values["sampler"], card) if levels else []
    return sum(low < ratio <= high for ratio in ratios)


def _evaluated(levels: Sequence[float], sampler: str, card: ModelCard) -> list[float]:
    """ρ of each evaluation. The stages of a step lie between its level and the next; the last step has one."""
    stages = card.stages.get(sampler, 1)
    found = [levels[0]] * (card.extra_evaluations.get(sampler, 0) if len(levels) > 1 else 0)
    for before, after in pairwise(levels):
        if stages == 2:
            found += [before, math.sqrt(before * after)]
        else:
            found += [before] * stages
    return [*found, levels[-1]]


def _levels(values: Mapping[str, Any], card: ModelCard) -> list[float]:
    """ρ at the start of each step, falling."""
    if values.get("sigmas") is not None:
        return list(values["sigmas"])
    grid, steps = card.grid, values["steps"]
    spacing = spacing_of_levels(values.get("spacing"), values.get("karras"), grid)
    own = [_ratio_at(grid, t, card.timesteps) for t in _timesteps(values, card)]
    if spacing is None or not card.takes_spacing(values["sampler"]):
        return own
    if spacing in grid.published:
        levels = grid.published[spacing]
        return [_interpolated(levels, k / steps * (len(levels) - 1)) for k in range(steps)]
    if (learned := card.learned_sigmas(values["sampler"], steps)) and spacing == LEARNED:
        return learned
    if spacing == UNIFORM:
        stride = (card.timesteps - 1) / steps
        return [_ratio_at(grid, card.timesteps - 1 - k * stride, card.timesteps) for k in range(steps)]
    low, high = _bounds(spacing, values, own, card)
    return [_spaced(spacing, low, high, k / max(1, steps - 1)) for k in range(steps)]


def _timesteps(values: Mapping[str, Any], card: ModelCard) -> list[float]:
    """The timesteps that the sampler visits without a spacing of levels, the noisiest first."""
    sampler, steps = values["sampler"], values["steps"]
    total = _total(values, card)
    given = values.get("spacing")
    spacing = given if given in TIMESTEP_SPACINGS else card.grid.spacing
    if not card.takes_spacing(sampler):
        spacing = "trailing"
    solver = sampler in card.solver_samplers
    if spacing == "leading":
        first = card.first_leading_timestep(sampler, steps)
        stride = total // (steps + 1) if solver else total // steps
        return [float(max(0, first - k * max(1, stride))) for k in range(steps)]
    if spacing == "trailing":
        return [float(max(0, round(total - k * total / steps) - 1)) for k in range(steps)]
    last = steps if solver else max(1, steps - 1)
    return [(total - 1) * (1 - k / last) for k in range(steps)]


def _total(values: Mapping[str, Any], card: ModelCard) -> int:
    """How many timesteps, counted from 0, the sampler chooses from."""
    visited = card.grid.visited.get(values["sampler"], card.timesteps)
    return visited if values["steps"] <= visited else card.timesteps


def _ratio_at(grid: CardGrid, t: float, timesteps: int) -> float:
    """ρ at a timestep: log ρ is interpolated between those of the card."""
    return _interpolated(grid.ratios, t / max(1, timesteps - 1) * (len(grid.ratios) - 1))


def _interpolated(ratios: Sequence[float], position: float) -> float:
    """ρ at a position 0 … len(ratios) − 1; log ρ is linear between them."""
    below = min(int(position), len(ratios) - 2)
    low, high = math.log(ratios[below]), math.log(ratios[below + 1])
    return math.exp(low + (high - low) * (position - below))


def _bounds(spacing: str, values: Mapping[str, Any], own: Sequence[float], card: ModelCard) -> tuple[float, float]:
    """The lowest and the highest ρ of a spacing, as `RatioSpacing.bounds` has them. own: ρ of the timesteps."""
    sampler, grid = values["sampler"], card.grid
    lowest, highest = grid.ratios[0], _ratio_at(grid, _total(values, card) - 1, card.timesteps)
    first, last = (highest, lowest) if sampler in card.solver_samplers else (own[0], own[-1])
    high = min(first, CAPPED_RATIO) if highest > STEEP_RATIO else first
    low = min(last, high)
    if spacing in OWN_BOUNDS:
        low, high = max(OWN_BOUNDS[spacing][0], lowest), min(OWN_BOUNDS[spacing][1], highest)
    return float(values.get("sigma_min") or low), float(values.get("sigma_max") or high)


def _spaced(spacing: str, low: float, high: float, share: float) -> float:
    """ρ at a share 0 … 1 of a run."""
    if spacing in ("karras", "edm"):
        top, bottom = high ** (1 / KARRAS_EXPONENT), low ** (1 / KARRAS_EXPONENT)
        return float((top + share * (bottom - top)) ** KARRAS_EXPONENT)
    if spacing == "beta":  # quantiles of Beta(½, ½), close to those of Beta(.6, .6)
        return low + (high - low) * math.cos(math.pi / 2 * share) ** 2
    return float(high * (low / high) ** share)
