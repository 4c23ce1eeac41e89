"""Warnings of valid requests."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from denoised.app.admission.request_warnings import find_warnings
from denoised.app.admission.validation import resolve_request
from denoised.app.http.errors import InvalidRequest
from denoised.jobs.record import JobRecord
from denoised.model.diffusion.grids import SPACINGS, Grid, solver_levels
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.errors import PlanError
from denoised.model.serving.card import CardGrid, ModelCard
from denoised.model.serving.card_facts import sampler_facts

SOLVERS = [name for name, sampler in SAMPLERS.items() if sampler.levels is solver_levels]
LINEAR = NoiseSchedule.from_name("linear")


def messages(card_of: Any, request_of: Any, grid: dict[str, Any] | None = None, **fields: Any) -> list[str]:
    card = card_of(samplers=list(SAMPLERS), solver_samplers=SOLVERS, grid=grid or {})
    return [warning.message for warning in find_warnings(request_of(**fields), card)]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_first_leading_timestep_is_that_of_the_plan(card_of: Any, sampler: str, offset: int) -> None:
    """For every number of steps; with an offset, those that start past the last timestep are refused."""
    card = card_of(solver_samplers=SOLVERS, grid={"spacing": "leading", "steps_offset": offset})
    for steps in range(1, 1001):
        first = card.first_leading_timestep(sampler, steps)
        if first > 999:
            with pytest.raises(PlanError, match=f"starts at {first}, past the last 999"):
                SAMPLERS[sampler].levels(LINEAR, steps, Grid("leading", steps_offset=offset))
        else:
            assert SAMPLERS[sampler].levels(LINEAR, steps, Grid("leading", steps_offset=offset)).t[0] == first, steps


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("lambda_min", [-5.1, -1.0])
def test_the_first_leading_timestep_counts_what_a_sampler_leaves_out(
    card_of: Any, schedule: str, lambda_min: float
) -> None:
    """`lambda_min_clipped` of the DPM-Solver family, and the cap of the two-stage samplers on steep schedules."""
    noise, grid = NoiseSchedule.from_name(schedule), Grid("leading", lambda_min=lambda_min)
    facts = sampler_facts(noise, grid)
    card = card_of(solver_samplers=SOLVERS, grid=facts["grid"].model_dump())
    assert facts["grid"].visited.keys() >= ({"dpmpp_2m", "unipc"} if lambda_min == -1.0 else set())
    for name, sampler in SAMPLERS.items():
        for steps in (1, 2, 3, 7, 20, 100, 333, 500, 600):
            first = card.first_leading_timestep(name, steps)
            if name not in facts["spacing_samplers"]:
                continue
            if steps <= facts["grid"].visited.get(name, 1000) or sampler.levels is not solver_levels:
                assert sampler.levels(noise, steps, grid).t[0] == first, (name, steps)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpmpp_2m", "dpmpp_sde", "tcd"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
def test_a_run_without_a_grid_is_refused_and_not_accepted_to_fail_later(
    card_of: Any, sampler: str, spacing: str, offset: int
) -> None:
    noise = NoiseSchedule.from_name("squaredcos_cap_v2")
    grid = Grid(spacing, steps_offset=offset, lambda_min=-2.0)
    card = card_of(
        samplers=list(SAMPLERS),
        **{k: sampler_facts(noise, grid)[k] for k in ("grid", "solver_samplers", "spacing_samplers")},
    )
    for steps in (1, 2, 10, 333, 499, 500, 800, 900, 950, 990, 998, 999, 1000):
        given: Any = {"sampler": sampler, "steps": steps}
        try:
            SAMPLERS[sampler].levels(noise, steps, grid)
        except PlanError:
            with pytest.raises(InvalidRequest, match=f"steps: {steps} "):
                resolve_request(given, card)
        else:
            assert resolve_request(given, card).steps == steps


def test_leading_spacing_that_starts_far_below_the_last_timestep_is_warned_of(card_of: Any, request_of: Any) -> None:
    (message,) = messages(card_of, request_of, sampler="ddim", steps=3, spacing="leading")
    assert message == (
        "3 leading steps of ddim start at timestep 666 of 0 … 999, where the model expects less noise than there is; "
        "trailing and linspace start at the last timestep"
    )
    for steps, first in ((1, 0), (400, 798), (501, 500)):
        (message,) = messages(card_of, request_of, sampler="ddim", steps=steps, spacing="leading")
        assert f"timestep {first} of" in message
    (message,) = messages(card_of, request_of, sampler="dpmpp_2m", steps=500, spacing="leading")
    assert "timestep 500 of" in message


@pytest.mark.parametrize("steps", [10, 20, 25, 50, 100, 1000])
def test_common_numbers_of_leading_steps_have_no_warning(card_of: Any, request_of: Any, steps: int) -> None:
    assert messages(card_of, request_of, sampler="ddim", steps=steps, spacing="leading") == []


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_request_that_leaves_spacing_out_has_that_of_the_model(card_of: Any, request_of: Any, spacing: str) -> None:
    grid = {"spacing": spacing}
    assert bool(messages(card_of, request_of, grid, sampler="ddim", steps=3)) == (spacing == "leading")
    assert messages(card_of, request_of, grid, sampler="ddim", steps=3, spacing="trailing") == []


def test_karras_levels_of_the_solvers_start_at_the_highest_noise_level(card_of: Any, request_of: Any) -> None:
    asked = {"steps": 3, "spacing": "leading"}
    assert messages(card_of, request_of, sampler="dpmpp_2m", karras=True, **asked) == []
    assert messages(card_of, request_of, {"karras": True}, sampler="dpmpp_2m", **asked) == []
    assert messages(card_of, request_of, {"karras": True}, sampler="dpmpp_2m", karras=False, **asked)
    assert messages(card_of, request_of, sampler="euler", karras=True, **asked)
    assert messages(card_of, request_of, {"spacing": "leading"}, sampler="euler", spacing="beta", steps=3)
    for levels in ({"spacing": "geometric"}, {"spacing": "beta", "sigma_max": 9.0}, {"sigmas": [3.0, 2.0, 1.0]}):
        assert messages(card_of, request_of, {"spacing": "leading"}, sampler="euler", steps=3, **levels) == []
    distilled = card_of(grid={"spacing": "leading"}, spacing_samplers=["ddim"])
    assert list(find_warnings(request_of(sampler="lcm", steps=3), distilled)) == []


@pytest.mark.parametrize(
    ("interval", "warned"),
    [([0.0, 0.001], True), ([200.0, 300.0], True), ([0.2, 2.0], False), ([0.0, 400.0], False), ([100.0, 300.0], False)],
)
def test_a_guidance_interval_without_a_noise_level_of_the_model_is_warned_of(
    card_of: Any, request_of: Any, interval: list[float], warned: bool
) -> None:
    grid = {"sigma_min": 0.01, "sigma_max": 157.4}
    found = messages(card_of, request_of, grid, guidance_scale=2.0, guidance_interval=interval)
    assert [message.endswith("of shoes, so there is no guidance") for message in found] == [True] * warned
    assert messages(card_of, request_of, {}, guidance_scale=2.0, guidance_interval=interval) == []  # an older worker's


def test_samplers_of_distilled_models_are_warned_of_elsewhere(card_of: Any, request_of: Any) -> None:
    undistilled, unknown, distilled = (
        card_of(samplers=list(SAMPLERS), spacing_samplers=["ddim"], distilled=value) for value in (False, None, True)
    )
    for sampler in ("lcm", "tcd"):
        (warning,) = find_warnings(request_of(sampler=sampler, steps=4), undistilled)
        assert warning.field == "sampler"
        assert warning.message.startswith(f"{sampler} is for models that were distilled for it")
        for card in (unknown, distilled):
            assert list(find_warnings(request_of(sampler=sampler, steps=4), card)) == []
        adapted = request_of(sampler=sampler, steps=4, loras=({"name": "lcm", "weight": 1.0},))
        assert list(find_warnings(adapted, undistilled)) == []
    assert list(find_warnings(request_of(sampler="ddim", steps=20), undistilled)) == []


def test_the_warning_is_in_the_job_object_from_the_first_answer_to_the_last(
    api: TestClient, fake_worker: Any, card_of: Any
) -> None:
    fake_worker.serve(card_of())
    accepted = api.post("/generate", json={"steps": 3, "spacing": "leading"})
    assert accepted.status_code == 202
    (warning,) = accepted.json()["warnings"]
    assert warning["field"] == "spacing"
    assert "timestep 666 of 0 … 999" in warning["message"]
    assert api.get(f"/jobs/{accepted.json()['id']}").json()["warnings"] == [warning]
    assert api.post("/generate", json={"steps": 3}).json()["warnings"] == []


def test_a_record_keeps_its_warnings(request_of: Any, card_of: Any) -> None:
    request = request_of(steps=3, spacing="leading")
    job = JobRecord("a", "", request, 0.0, warnings=tuple(find_warnings(request, card_of())))
    assert len(job.warnings) == 1
    assert JobRecord.from_fields(job.to_fields()) == job
    without = JobRecord("a", "", request, 0.0)
    assert JobRecord.from_fields(without.to_fields()) == without


def test_a_card_without_a_grid_is_that_of_an_older_worker(card_of: Any) -> None:
    raw = card_of().model_dump(exclude={"grid", "inputs"})
    assert ModelCard.model_validate(raw).grid == CardGrid(spacing="trailing", steps_offset=0, karras=False)
