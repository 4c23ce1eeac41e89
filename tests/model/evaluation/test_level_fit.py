"""Fitting noise levels: the search, its coordinates, and the check against Gaussian data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoised.model.checkpoints.card_file import CardFile, Defaults, LearnedLevels, read_card_file
from denoised.model.diffusion.grids import Grid, noise_ratios
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.samplers import compile_plan
from denoised.model.diffusion.spacings import geometric_ratios
from denoised.model.evaluation.level_fitting.learn_levels_cli import with_learned_levels
from denoised.model.evaluation.level_fitting.level_fit import (
    LevelFit,
    coordinates,
    fit_levels,
    gaussian_deviation,
    levels_at,
)
from denoised.model.serving.loading import load_model
from tests.model_commands import run_command

LINEAR = NoiseSchedule.from_name("linear")
BOUNDS = (0.01, 150.0)


@given(st.lists(st.floats(0.01, 3.0), min_size=1, max_size=12), st.floats(-2.0, 5.0))
def test_coordinates_are_those_of_falling_levels(gaps: list[float], top: float) -> None:
    sigmas = np.exp(top - np.cumsum(gaps))
    point = coordinates(sigmas)
    assert levels_at(point) == pytest.approx(sigmas, rel=1e-12)
    anywhere = levels_at(point + np.linspace(-3, 3, len(point)))
    assert (np.diff(anywhere) < 0).all(), "every point is a falling list"


def test_the_search_finds_the_levels_of_a_known_loss() -> None:
    """The distance in log ρ from levels that differ from the start in every place."""
    wanted = (30.0, 5.0, 1.5, 0.4, 0.06)

    def loss(sigmas: tuple[float, ...]) -> float:
        return float(np.square(np.log(sigmas) - np.log(wanted)).sum())

    start = geometric_ratios(0.1, 40.0, 5).tolist()
    fit = fit_levels(start, loss, BOUNDS, 400)
    assert fit.start_loss == pytest.approx(loss(tuple(start)), rel=1e-3)
    assert fit.sigmas == pytest.approx(wanted, rel=0.02)
    assert fit.trials <= 400


def test_no_trial_leaves_the_schedule_and_the_start_is_never_lost() -> None:
    tried: list[tuple[float, ...]] = []

    def loss(sigmas: tuple[float, ...]) -> float:
        tried.append(sigmas)
        return -sigmas[0]  # the higher the better, beyond the end

    reports: list[LevelFit] = []
    fit = fit_levels([100.0, 1.0], loss, BOUNDS, 60, reports.append)
    assert all(BOUNDS[0] <= low < high <= BOUNDS[1] for high, low in tried)
    assert 145 < fit.sigmas[0] <= 150
    assert [report.loss for report in reports] == sorted((report.loss for report in reports), reverse=True)
    assert fit_levels([9.0], lambda sigmas: 1.0, BOUNDS, 30).sigmas == (9.0,), "nothing was better"
    assert fit_levels([9.0, 1.0], lambda sigmas: 1.0, BOUNDS, 1).trials == 1


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "unipc_3", "heun", "ddpm"])
@pytest.mark.parametrize("s", [0.25, 1.0])
def test_an_exact_sampler_keeps_the_deviation_of_gaussian_data(sampler: str, s: float) -> None:
    levels = LevelChoice(sigmas=tuple(geometric_ratios(0.011, 150.0, 400)))
    plan = compile_plan(sampler, LINEAR, 400, levels.of(Grid("trailing")))
    assert gaussian_deviation(plan, s) == pytest.approx(s, rel=0.02)


def test_few_levels_of_euler_have_the_error_of_the_product() -> None:
    """Euler's steps of dx̄/dρ multiply x̄ by (1 − h/ρ·ρ²/(ρ² + s²)) each; the last goes to 0."""
    sigmas, s = (40.0, 2.0, 0.3), 0.5
    plan = compile_plan("euler", LINEAR, 3, LevelChoice(sigmas=sigmas).of(Grid("trailing")))
    expected = plan.initial_scale / float(plan.alpha[0])
    for high, low in zip(sigmas, (*sigmas[1:], 0.0), strict=True):
        expected *= 1 + (low - high) * high / (high**2 + s**2)
    assert gaussian_deviation(plan, s) == pytest.approx(abs(expected), rel=1e-9)


def test_learned_levels_take_the_place_of_those_for_the_same_requests() -> None:
    def card(*learned: tuple[str, Sequence[float]]) -> CardFile:
        return CardFile(learned_levels=[LearnedLevels(sampler=name, sigmas=list(sigmas)) for name, sigmas in learned])

    before = card(("unipc_3", [9, 1]), ("euler", [9, 1]))
    assert with_learned_levels(before, "unipc_3", (8, 2)) == card(("euler", [9, 1]), ("unipc_3", [8, 2]))
    assert with_learned_levels(before, "euler", (8,)) == card(("euler", [8]), ("euler", [9, 1]), ("unipc_3", [9, 1]))
    assert math.isclose(noise_ratios(LINEAR)[-1], 157.4, rel_tol=0.01), "the bounds of these tests lie inside"


def test_the_command_writes_better_levels_into_the_card(
    data: Path, features: Path, folder: Callable[..., Path]
) -> None:
    model = folder(labels=("dark", "gray", "light"), _class_name="EulerDiscreteScheduler")
    default = load_model(model).card.default
    assert default.sampler != Defaults().sampler
    options = ["--data", data, "--features", features, "--sampler", "euler", "--steps", 2, "--images", 12]
    options += ["--check-images", 12, "--batch", 12, "--trials", 12]
    done = run_command("learn-levels", model, *options, "--seed", 0, "--no-write")
    assert done.exit_code == 0, done.output
    assert read_card_file(model).learned_levels == []
    found = re.search(r"geometric ([\d.e-]+), learned ([\d.e-]+)", done.output)
    assert found is not None
    assert float(found[2]) < float(found[1]), "with the seeds of the trials"
    again = run_command("learn-levels", model, *options, "--seed", 0)
    assert again.output.splitlines()[:3] == done.output.splitlines()[:3], "the same seeds find the same levels"
    (learned,) = read_card_file(model).learned_levels
    assert again.output.startswith(f"levels: {learned.sigmas[0]:g}, {learned.sigmas[1]:g}\n")
    card = load_model(model).card
    assert card.learned_sigmas("euler", 2) == learned.sigmas
    assert card.default == default, "the card still leaves the defaults to the scheduler's file"


def test_the_command_keeps_the_card_if_the_levels_are_no_better(
    data: Path, features: Path, folder: Callable[..., Path]
) -> None:
    model = folder(labels=("dark", "gray", "light"))
    options = ["--data", data, "--features", features, "--steps", 2, "--images", 12, "--check-images", 12]
    done = run_command("learn-levels", model, *options, "--sampler", "euler", "--trials", 1)
    assert "Not better than at the start, so nothing was written" in done.output
    assert read_card_file(model).learned_levels == []
    wrong = run_command("learn-levels", model, *options, "--sampler", "lcm")
    assert wrong.exit_code == 1
    assert wrong.stderr == "denoised learn-levels: --sampler lcm: not a sampler that takes noise levels\n"
