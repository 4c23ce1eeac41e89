"""The front end's count of evaluations within `guidance_interval`, against the worker's plans."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from denoised.app.admission.guided_evaluations import count_guided
from denoised.app.admission.queue.queue_snapshot import total_work
from denoised.app.admission.validation import resolve_request
from denoised.jobs.record import JobRecord
from denoised.model.checkpoints.card_file import LearnedLevels
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.guidance import is_within
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.published_levels import PUBLISHED_LEVELS
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.diffusion.spacings import RATIO_SPACINGS
from denoised.model.serving.card import ModelCard
from denoised.model.serving.card_facts import sampler_facts

INTERVALS = [(0.5, 3.0), (0.0, 1.0), (1.0, 100.0), (0.19, 1.61), (50.0, 60.0)]
SCHEDULES = {
    "linear": NoiseSchedule.from_name("linear"),
    "cosine": NoiseSchedule.from_name("squaredcos_cap_v2"),
    "stable-diffusion": NoiseSchedule.from_name("scaled_linear", start=0.00085, end=0.012),
    "zero-snr": NoiseSchedule.from_name("scaled_linear", start=0.00085, end=0.012).with_zero_terminal_snr(),
}


def card_of(schedule: NoiseSchedule, spacing: str = "leading") -> ModelCard:
    facts = sampler_facts(schedule, Grid(spacing))
    return ModelCard(
        name="fake",
        width=8,
        height=8,
        channels=1,
        labels=["a", "b"],
        timesteps=schedule.timesteps,
        prediction_type="epsilon",
        default={"sampler": "ddim", "steps": 5, "guidance_scale": 1.0},  # type: ignore[arg-type]
        max_images=16,
        numerics="fake",
        **facts,
    )


def true_count(schedule: NoiseSchedule, own: str, values: dict[str, Any]) -> int:
    choice = LevelChoice(values.get("spacing"), values.get("karras"), values.get("sigma_min"), values.get("sigma_max"))
    sigmas = values.get("sigmas")
    if sigmas is not None:
        choice = LevelChoice(sigmas=tuple(sigmas))
    plan = compile_plan(values["sampler"], schedule, values["steps"], choice.of(Grid(own)), 0.0)
    return sum(is_within(plan.ratio(row), values["guidance_interval"]) for row in range(plan.evaluations))


def tolerance(sampler: str, steps: int) -> float:
    """One step's evaluations at each end of the interval, or a twentieth of all."""
    stages = SAMPLERS[sampler].stages
    return max(2 * stages, 0.05 * stages * steps)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_count_is_that_of_the_plan_within_a_step_at_each_end(sampler: str, name: str) -> None:
    schedule = SCHEDULES[name]
    for own in ("leading", "trailing", "linspace"):
        card = card_of(schedule, own)
        for steps in (1, 7, 30):
            for interval in INTERVALS:
                values = {"sampler": sampler, "steps": steps, "guidance_interval": interval}
                counted = count_guided(values, card)
                assert counted is not None
                assert abs(counted - true_count(schedule, own, values)) <= tolerance(sampler, steps), (own, values)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", *RATIO_SPACINGS])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_spacing_is_counted(name: str, spacing: str) -> None:
    schedule, bounds = SCHEDULES[name], [{}]
    card = card_of(schedule)
    if spacing in RATIO_SPACINGS and spacing != "sgm_uniform":
        bounds.append({"sigma_min": 0.1, "sigma_max": 10.0})
    for sampler in ("ddim", "euler", "dpmpp_2m", "heun"):
        for interval in INTERVALS:
            for own in bounds:
                values = {"sampler": sampler, "steps": 30, "guidance_interval": interval, "spacing": spacing, **own}
                counted = count_guided(values, card)
                assert counted is not None
                off = abs(counted - true_count(schedule, "leading", values))
                assert off <= tolerance(sampler, 30), (values, counted)


@pytest.mark.parametrize("spacing", PUBLISHED_LEVELS)
def test_published_levels_are_counted(spacing: str) -> None:
    schedule = SCHEDULES["stable-diffusion"]
    for sampler, steps, interval in product(("ddim", "euler", "dpmpp_2m", "heun"), (1, 10, 23), INTERVALS):
        values = {"sampler": sampler, "steps": steps, "guidance_interval": interval, "spacing": spacing}
        counted = count_guided(values, card_of(schedule))
        assert counted is not None
        # A stage of Heun's method at the level after its step is counted between the two.
        assert abs(counted - true_count(schedule, "leading", values)) <= (sampler == "heun"), values


def test_named_levels_are_counted_exactly() -> None:
    sigmas = [12.0, 5.0, 3.0, 1.0, 0.5, 0.1]
    values = {"sampler": "euler", "steps": 6, "sigmas": sigmas, "guidance_interval": (0.5, 5.0)}
    assert count_guided(values, card_of(SCHEDULES["linear"])) == 3


def test_without_an_interval_all_evaluations_are_guided() -> None:
    values = {"sampler": "euler", "steps": 6, "guidance_interval": None}
    assert count_guided(values, card_of(SCHEDULES["linear"])) is None


def test_admission_and_the_estimate_use_the_count() -> None:
    card = card_of(SCHEDULES["linear"])
    given: Any = {"model": "fake", "label": "a", "n": 2, "seed": 1, "sampler": "euler", "steps": 20}
    whole = resolve_request({**given, "guidance_scale": 3.0}, card)
    part = resolve_request({**given, "guidance_scale": 3.0, "guidance_interval": [0.5, 3.0]}, card)
    plain = resolve_request(given, card)
    assert (plain.evaluations, whole.evaluations) == (40, 80)
    assert part.guided_evaluations is not None
    assert part.evaluations == 2 * (20 + part.guided_evaluations)
    assert 40 < part.evaluations < 80
    work = total_work(JobRecord("a", "", part, 0.0))
    assert (work.turns, work.evaluations) == (20, part.evaluations)
    assert 1 < work.rows < 2


def test_learned_levels_are_counted_exactly() -> None:
    card = card_of(SCHEDULES["linear"])
    card.grid.learned = [LearnedLevels(sampler="euler", sigmas=[12.0, 5.0, 3.0, 1.0])]
    values = {"sampler": "euler", "steps": 4, "spacing": "learned", "guidance_interval": (1.0, 5.0)}
    assert count_guided(values, card) == 2
