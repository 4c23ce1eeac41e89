"""Noise schedules and predictions against closed forms."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from denoised.model.diffusion.noise import BETAS, NoiseSchedule, beta_ends, level_tables
from denoised.model.diffusion.predictions import (
    PREDICTION_TYPES,
    add_noise,
    epsilon_from_v,
    epsilon_from_x0,
    estimate_from_output,
    score_from_epsilon,
    training_target,
    v_target,
    x0_from_epsilon,
    x0_from_v,
)
from denoised.model.errors import CheckpointError

MU, S = 0.3, 0.5


def _images_at_four_levels(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, ε, α, σ of four images at four noise levels, float64."""
    generator = torch.Generator().manual_seed(seed)
    x0, epsilon = (torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    schedule = NoiseSchedule.from_name("linear")
    levels = [0, 250, 700, 999]
    return x0, epsilon, torch.from_numpy(schedule.alpha[levels]), torch.from_numpy(schedule.sigma[levels])


@pytest.mark.parametrize("timesteps", [100, 250, 1000, 4000])
def test_the_total_noise_does_not_depend_on_the_number_of_timesteps(timesteps: int) -> None:
    """mathematics.md, trap 40: T = 100 ends at β = .2, and ᾱ_T is of the size it has with T = 1000, 4.04e-5."""
    assert beta_ends(100) == (pytest.approx(0.001), pytest.approx(0.2))
    assert beta_ends(1000) == (0.0001, 0.02)
    last = NoiseSchedule.from_name("linear", timesteps).alpha[-1] ** 2
    assert 1e-5 < last < 1e-4


def test_the_linear_table_has_the_published_ends() -> None:
    """mathematics.md, noise levels: ᾱ[0] = 0.9999, ᾱ[999] = 4.035829765e-5; σ/α = 0.0100 and 157.4073 there."""
    schedule = NoiseSchedule.from_name("linear")
    assert schedule.timesteps == 1000
    assert schedule.alpha[0] ** 2 == pytest.approx(0.9999, abs=1e-15)
    assert schedule.alpha[999] ** 2 == pytest.approx(4.035829765e-5, rel=1e-9)
    ratio = schedule.sigma / schedule.alpha
    assert ratio[0] == pytest.approx(0.0100, abs=5e-5)
    assert ratio[999] == pytest.approx(157.4073, abs=5e-5)


def test_the_cosine_table_has_the_published_ends_and_one_capped_beta() -> None:
    """mathematics.md, noise levels: ᾱ[0] = .99995869, ᾱ[998] = 2.4288e-6, ᾱ[999] = 2.4287e-9; one β capped.

    That ᾱ[0] was read from diffusers' float32 table (spacing 6e-8 there); eq. 17 in full precision: .9999587158.
    """
    schedule = NoiseSchedule.from_name("squaredcos_cap_v2")
    assert schedule.alpha[0] ** 2 == pytest.approx(0.99995869, abs=6e-8)
    assert schedule.alpha[0] ** 2 == pytest.approx(0.9999587158, abs=5e-11)
    assert schedule.alpha[998] ** 2 == pytest.approx(2.4288e-6, rel=3e-5)
    assert schedule.alpha[999] ** 2 == pytest.approx(2.4287e-9, rel=3e-5)
    betas = BETAS["squaredcos_cap_v2"](1000, 0.0, 0.0)
    assert int((betas == 0.999).sum()) == 1
    assert betas[-1] == 0.999


def test_one_minus_alpha_bar_is_exact_to_twelve_digits() -> None:
    """mathematics.md, trap 19: a float32 product is wrong by 1.66e-4 here. Expected: the product in 50 digits."""
    getcontext().prec = 50
    sigma = NoiseSchedule.from_name("linear").sigma
    product = Decimal(1)
    for t, beta in enumerate(BETAS["linear"](1000, 1e-4, 0.02)):
        product *= 1 - Decimal(float(beta))
        exact = 1 - product
        assert abs(Decimal(float(sigma[t])) ** 2 - exact) / exact < Decimal("1e-12"), t


@pytest.mark.parametrize("name", BETAS)
def test_every_schedule_is_finite_and_its_noise_grows(name: str) -> None:
    """mathematics.md, trap 19: the cosine schedule is finite at t = 999. α² + σ² = 1 at every level."""
    schedule = NoiseSchedule.from_name(name)
    assert np.isfinite(schedule.alpha).all()
    assert np.isfinite(schedule.sigma).all()
    assert (np.diff(schedule.alpha) < 0).all()
    assert (np.diff(schedule.sigma) >= 0).all()
    assert np.allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=0, atol=1e-14)


def test_the_float32_tables_are_rounded_once() -> None:
    schedule = NoiseSchedule.from_name("linear")
    alpha, sigma = level_tables(schedule)
    assert alpha.dtype == sigma.dtype == torch.float32
    assert torch.equal(sigma, torch.tensor(schedule.sigma.astype(np.float32)))
    assert torch.equal(alpha, torch.tensor(schedule.alpha.astype(np.float32)))


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"beta_schedule = 'quadratic' is not supported .*linear"):
        NoiseSchedule.from_name("quadratic")


@settings(deadline=None, database=None, max_examples=30)
@given(seed=st.integers(0, 1000))
def test_noise_v_and_data_convert_into_each_other(seed: int) -> None:
    """x_t = α·x_0 + σ·ε and v = α·ε − σ·x_0 (Salimans & Ho 2022): any one with x_t gives the others."""
    x0, epsilon, alpha, sigma = _images_at_four_levels(seed)
    x_t = add_noise(x0, epsilon, alpha, sigma)
    v = v_target(x0, epsilon, alpha, sigma)
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(x0_from_epsilon(x_t, epsilon, alpha, sigma), x0, **close)
    torch.testing.assert_close(epsilon_from_x0(x_t, x0, alpha, sigma), epsilon, **close)
    torch.testing.assert_close(x0_from_v(x_t, v, alpha, sigma), x0, **close)
    torch.testing.assert_close(epsilon_from_v(x_t, v, alpha, sigma), epsilon, **close)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_output_of_any_prediction_type_gives_the_data_and_the_noise(prediction_type: str) -> None:
    x0, epsilon, alpha, sigma = _images_at_four_levels()
    x_t = add_noise(x0, epsilon, alpha, sigma)
    output = training_target(x0, epsilon, alpha, sigma, prediction_type)
    read = estimate_from_output(output, x_t, alpha, sigma, prediction_type)
    torch.testing.assert_close(read.x0, x0, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(read.epsilon, epsilon, rtol=1e-9, atol=1e-10)


def test_v_prediction_is_finite_without_signal() -> None:
    """mathematics.md, trap 8: at ᾱ = 0 a v-prediction gives x̂_0 = −v."""
    v = torch.tensor([[[[0.25]]]])
    x = torch.tensor([[[[9.0]]]])
    assert x0_from_v(x, v, torch.zeros(1), torch.ones(1)).item() == -0.25


def test_each_image_of_a_batch_has_its_own_noise_level() -> None:
    x0, epsilon, alpha, sigma = _images_at_four_levels()
    whole = add_noise(x0, epsilon, alpha, sigma)
    for k in range(4):
        alone = add_noise(x0[k : k + 1], epsilon[k : k + 1], alpha[k : k + 1], sigma[k : k + 1])
        assert torch.equal(whole[k : k + 1], alone)


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    """mathematics.md, closed forms: ε* = σ(x − αμ)/v gives the score −(x − αμ)/v; by autograd, to 1e-10."""
    _, x, alpha, sigma = _images_at_four_levels()
    x = x.requires_grad_()
    a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    v = a**2 * S**2 + s**2
    log_density = -((x - a * MU) ** 2) / (2 * v)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    ideal = s * (x - a * MU) / v
    torch.testing.assert_close(score_from_epsilon(ideal, sigma), gradient, rtol=1e-10, atol=1e-12)


def test_the_minimal_loss_on_gaussian_data_has_its_closed_form() -> None:
    """mathematics.md, closed forms: min E‖ε − ε*‖² = α²s²/v.

    Exact on the four points x_0 = μ ± s, ε = ±1, which have the same second moments.
    """
    x0 = torch.tensor([MU - S, MU - S, MU + S, MU + S], dtype=torch.float64)
    epsilon = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    schedule = NoiseSchedule.from_name("linear")
    for t in (0, 100, 500, 999):
        a, s = float(schedule.alpha[t]), float(schedule.sigma[t])
        v = a**2 * S**2 + s**2
        x_t = add_noise(x0, epsilon, torch.full_like(x0, a), torch.full_like(x0, s))
        loss = (epsilon - s * (x_t - a * MU) / v).square().mean().item()
        assert loss == pytest.approx(a**2 * S**2 / v, rel=1e-12)
