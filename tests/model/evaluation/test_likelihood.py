"""The score and the likelihood against closed forms (mathematics.md, closed forms, traps 32 and 43)."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from denoised.model.diffusion.likelihood_plan import BYTE_WIDTH, bits
from denoised.model.diffusion.noise import BETAS, NoiseSchedule
from denoised.model.errors import PlanError
from denoised.model.evaluation.likelihood import (
    NoisePredictor,
    bits_per_dimension,
    estimate_error,
    log_density,
    measure_likelihood,
)
from denoised.model.serving.conditioning import Conditioning
from denoised.model.serving.loading import ZOO, load_model
from tests import fork_server

LINEAR = NoiseSchedule.from_name("linear")
COSINE = NoiseSchedule.from_name("squaredcos_cap_v2")
Folder = Callable[..., Path]


def gaussian(mu: float, s: Tensor) -> NoisePredictor:
    """ε* for data N(μ, s²) with a standard deviation s for each dimension: ε* = σ(x − αμ)/v, v = α²s² + σ²."""

    def epsilon(x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        return sigma * (x - alpha * mu) / (alpha**2 * s**2 + sigma**2)

    return epsilon


def uniform(x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
    """ε* for data uniform in [−1, 1] in each dimension: x̂_0 is the mean of N(x̄, ρ²) between −1 and 1."""
    ratio, center = sigma / alpha, x / alpha
    low, high = (-1 - center) / ratio, (1 - center) / ratio
    mass = torch.special.ndtr(high) - torch.special.ndtr(low)
    densities = [torch.exp(-end.square() / 2) / math.sqrt(2 * math.pi) for end in (low, high)]
    return (x - alpha * (center + ratio * (densities[0] - densities[1]) / mass)) / sigma


def exact_gaussian(x: Tensor, mu: float, s: Tensor, schedule: NoiseSchedule) -> Tensor:
    """log N(x̄; μ, s² + ρ²) (B,) at the lowest level."""
    variance = s**2 + float(schedule.sigma[0] / schedule.alpha[0]) ** 2
    return (-((x - mu) ** 2) / (2 * variance) - torch.log(2 * math.pi * variance) / 2).flatten(1).sum(1)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_the_density_of_gaussian_data_is_exact(schedule: NoiseSchedule) -> None:
    """The Jacobian is diagonal, so one probe is exact.

    The remaining error is that of the integration and of assuming N(0, I) instead of N(α_T·μ, v_T)."""
    s = torch.linspace(0.3, 1.2, 16, dtype=torch.float64).view(1, 4, 4)
    x = 0.3 + s * torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = exact_gaussian(x, 0.3, s, schedule)
    found = log_density(gaussian(0.3, s), schedule, x, steps=800).log_density
    torch.testing.assert_close(found, exact, rtol=0, atol=0.03)
    rough = log_density(gaussian(0.3, s), schedule, x, steps=25).log_density
    assert (rough - exact).abs().max() > (found - exact).abs().max()


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("s", [0.003, 0.01, 0.05, 0.2, 0.5, 1.2])
def test_the_default_is_within_a_hundredth_of_a_bit_of_gaussian_data(name: str, zero_snr: bool, s: float) -> None:
    """Of the closed form; with the integration in ρ the bits read .05 to .08 low."""
    schedule = NoiseSchedule.from_name(name)
    schedule = schedule.with_zero_terminal_snr() if zero_snr else schedule
    scales = torch.full((1, 4, 4), s, dtype=torch.float64)
    x = 0.3 + s * torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = bits(exact_gaussian(x, 0.3, scales, schedule), 16)
    found = bits(log_density(gaussian(0.3, scales), schedule, x).log_density, 16)
    assert abs(float((found - exact).mean())) < 0.002
    assert (found - exact).abs().max() < 0.01


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_uniform_noise_pays_eight_bits(schedule: NoiseSchedule) -> None:
    """Any density pays 8 on average; the blur of the lowest level, ρ = .01 or .006, costs .0064 or .0046 more."""
    generator = torch.Generator().manual_seed(3)
    bytes_ = torch.randint(0, 256, (256, 1, 8, 8), generator=generator).double()
    x = (bytes_ + torch.rand(256, 1, 8, 8, generator=generator, dtype=torch.float64) - 0.5) / 127.5 - 1
    mean = {
        steps: float(bits(log_density(uniform, schedule, x, steps=steps).log_density, 64).mean())
        for steps in (12, 25, 50, 100)
    }
    assert 8 < mean[100] < 8.01
    for steps in (25, 50):
        assert abs(mean[steps] - mean[100]) < 0.01
        # The estimate of the error, the difference from half of the steps, covers the error.
        assert abs(mean[steps] - mean[100]) < abs(mean[steps] - mean[steps // 2])


def test_the_error_falls_with_the_third_power_of_the_steps() -> None:
    x = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)
    epsilon = gaussian(0.3, torch.full((1, 2, 2), 0.05, dtype=torch.float64))
    fine = log_density(epsilon, LINEAR, x, steps=3200).log_density
    errors = [float((log_density(epsilon, LINEAR, x, steps=n).log_density - fine).abs()) for n in (100, 200, 400)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(3, abs=0.3)


def test_few_steps_report_their_error(folder: Folder) -> None:
    model = load_model(folder())
    images = torch.randint(0, 256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for steps, other in ((1, 2), (6, 3), (25, 12)):
        measured = measure_likelihood(model, images, [0, None], steps=steps)
        counts = (steps, other, max(other // 2, 1))
        found, half, quarter = (bits_per_dimension(model, images, [0, None], steps=count) for count in counts)
        torch.testing.assert_close(measured.bits_per_dimension, found, rtol=1e-5, atol=0)
        expected = torch.maximum((found - half).abs(), (half - quarter).abs() / 3)
        torch.testing.assert_close(measured.integration_error, expected, rtol=0, atol=1e-4)


def mixture(means: Tensor, scales: Tensor) -> NoisePredictor:
    """ε* for data from a mixture of Gaussians of equal weights in each dimension."""

    def epsilon(x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        variance, distance = alpha**2 * scales**2 + sigma**2, x[..., None] - alpha * means
        weights = torch.softmax(-variance.log() / 2 - distance.square() / (2 * variance), dim=-1)
        return sigma * (weights * distance / variance).sum(-1)

    return epsilon


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize(
    ("means", "scale", "covered"),
    [([0.3], 0.01, 0.75), ([-1.0, 1.0], 0.05, 0.6), (np.linspace(-1, 1, 40).tolist(), 0.04, 0.95)],
)
def test_the_estimated_error_covers_the_true_one_of_most_images(
    means: list[float], scale: float, covered: float, schedule: NoiseSchedule
) -> None:
    """Against the closed form. The share of images is measured; the default's mean error is below .01 bits."""
    generator = torch.Generator().manual_seed(0)
    centers, scales = torch.tensor(means, dtype=torch.float64), torch.full((len(means),), scale, dtype=torch.float64)
    chosen = torch.randint(len(means), (64, 8), generator=generator)
    x = centers[chosen] + scale * torch.randn(64, 8, generator=generator, dtype=torch.float64)
    alpha, sigma = float(schedule.alpha[0]), float(schedule.sigma[0])
    variance = alpha**2 * scales**2 + sigma**2
    terms = -(alpha * (x[..., None] - centers)).square() / (2 * variance) - torch.log(2 * math.pi * variance) / 2
    exact = bits((torch.logsumexp(terms, -1) - math.log(len(means)) + math.log(alpha)).sum(1), 8)
    epsilon = mixture(centers, scales)
    for steps in (25, 50, 100):
        found = estimate_error(lambda count: bits(log_density(epsilon, schedule, x, steps=count).log_density, 8), steps)
        errors = (found.bits_per_dimension - exact).abs()
        assert (errors <= found.integration_error).double().mean() >= covered, steps
    assert abs(float((found.bits_per_dimension - exact).mean())) < 0.01


def test_the_latent_has_its_closed_form() -> None:
    """x_T = α_T·μ + (x_0 − α_0·μ)·√(v_T/v_0)."""
    x = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)
    s = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    first, last = float(LINEAR.sigma[0] / LINEAR.alpha[0]), float(LINEAR.sigma[-1] / LINEAR.alpha[-1])
    expected = float(LINEAR.alpha[-1]) * (0.3 + 0.4 * math.sqrt((0.25 + last**2) / (0.25 + first**2)))
    latent = log_density(gaussian(0.3, s), LINEAR, x, steps=800).latent
    assert latent.flatten().tolist() == pytest.approx([expected] * 4, abs=1e-4)


def test_hutchinsons_estimate_is_unbiased_where_the_jacobian_is_not_diagonal() -> None:
    """For a correlated Gaussian, single probes scatter around the exact density and their mean converges to it."""
    root = torch.tensor([[0.6, 0.0], [0.4, 0.3]], dtype=torch.float64)
    covariance = root @ root.T

    def epsilon(x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        v = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        return sigma * torch.linalg.solve(v, x.flatten(1).T).T.view_as(x)

    x = torch.tensor([0.5, -0.2], dtype=torch.float64).view(1, 2, 1, 1)
    noisy = covariance + torch.eye(2, dtype=torch.float64) * float(LINEAR.sigma[0] / LINEAR.alpha[0]) ** 2
    exact = float(
        torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), noisy).log_prob(x.flatten())
    )
    single = torch.cat([log_density(epsilon, LINEAR, x, steps=100, seeds=[k]).log_density for k in range(40)])
    assert single.std() > 0.01
    assert float(single.mean()) == pytest.approx(exact, abs=4 * float(single.std()) / math.sqrt(40) + 0.02)
    assert float(log_density(epsilon, LINEAR, x, steps=100, probes=40).log_density) == pytest.approx(
        exact, abs=4 * float(single.std()) / math.sqrt(40) + 0.02
    )


def test_a_random_byte_has_eight_bits() -> None:
    """mathematics.md, trap 43: uniform over the 256 bins of width 2/255, p = 1/(256·BYTE_WIDTH) per dimension."""
    log_p = torch.tensor([-12 * math.log(256 * BYTE_WIDTH)], dtype=torch.float64)
    assert bits(log_p, 12).item() == pytest.approx(8.0, abs=1e-12)


def test_bits_of_gaussian_data_have_their_closed_form() -> None:
    """mathematics.md, trap 43: half the logarithm of 2πe·s², minus that of a bin."""
    s = torch.full((1, 8, 8), 0.5, dtype=torch.float64)
    x = 0.5 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bits(log_density(gaussian(0.0, s), LINEAR, x, steps=200).log_density, 64)
    expected = math.log2(2 * math.pi * math.e * 0.25) / 2 - math.log2(BYTE_WIDTH)
    assert float(found.mean()) == pytest.approx(expected, abs=0.02)


def test_bits_of_an_image_do_not_depend_on_its_batch(folder: Folder) -> None:
    """mathematics.md, trap 32."""
    model = load_model(folder())
    images = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    together = bits_per_dimension(model, images, [0, None, 2], steps=5)
    for k, label in enumerate([0, None, 2]):
        alone = bits_per_dimension(model, images[k : k + 1], [label], steps=5, seeds=[k])
        assert float(alone) == pytest.approx(float(together[k]), rel=1e-4)


def test_invalid_arguments_are_refused(folder: Folder) -> None:
    model = load_model(folder())
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(PlanError, match="steps = 0 is not at least 1"):
        bits_per_dimension(model, images, [None], steps=0)
    with pytest.raises(PlanError, match="probes = 0 is not at least 1"):
        bits_per_dimension(model, images, [None], probes=0)
    with pytest.raises(PlanError, match=r"images of shape \(1, 4, 4\) are not the model's \(1, 8, 8\)"):
        bits_per_dimension(model, images[..., :4, :4], [None])


def test_the_score_is_minus_the_noise_over_sigma(folder: Folder) -> None:
    """∇ log p_t = −ε̂/σ_t, for every prediction type, with a timestep for each image."""
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        model = load_model(folder(prediction_type=prediction_type))
        t = torch.tensor([5, 400, 999])
        alpha, sigma = (torch.from_numpy(table)[t].float() for table in (model.schedule.alpha, model.schedule.sigma))
        x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        epsilon = model.denoise(x, t.float(), alpha, sigma, Conditioning({"label": torch.tensor([0, 2, 3])})).epsilon
        score = model.score(x, t, [0, 2, None])
        torch.testing.assert_close(score, -epsilon / sigma.view(-1, 1, 1, 1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.score(x[:1], 5, 0), score[:1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.score(x, t, ["0", "2", None]), score, rtol=1e-4, atol=1e-4)


def test_between_two_timesteps_sigma_over_alpha_is_their_geometric_mean(folder: Folder) -> None:
    model = load_model(folder())
    ratio = model.schedule.sigma / model.schedule.alpha
    alpha, sigma = (torch.from_numpy(level).float() for level in model.schedule.levels_at(np.array([400.5])))
    assert float(sigma / alpha) == pytest.approx(math.sqrt(ratio[400] * ratio[401]), rel=1e-6)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    epsilon = model.denoise(x, torch.tensor([400.5]), alpha, sigma, Conditioning({"label": torch.tensor([1])})).epsilon
    torch.testing.assert_close(model.score(x, 400.5, 1), -epsilon / sigma, rtol=1e-5, atol=1e-5)


def test_a_score_at_an_invalid_timestep_or_class_is_refused(folder: Folder) -> None:
    model = load_model(folder())
    x = torch.zeros(1, 1, 8, 8)
    for t in (-1, 1000, float("nan")):
        with pytest.raises(PlanError, match=r"t = .* is outside 0 … 999"):
            model.score(x, t)
    for label in (3, -1, "boot"):
        with pytest.raises(PlanError, match=f"label = {label!r} is not a class of this model"):
            model.score(x, 5, label)
    with pytest.raises(PlanError, match=r"x of shape \(1, 8, 8\) is not \(B, C, H, W\)"):
        model.score(x[0], 5)


def test_piped_output_has_one_line_per_image(tmp_path: Path) -> None:
    picture = tmp_path / "gray.png"
    Image.new("L", (8, 8), 90).save(picture)
    command = [sys.executable, "-m", "denoised.model", "likelihood", "--model", str(ZOO / "digits"), "--steps", "25"]
    done = fork_server.run([*command, str(picture)], capture_output=True, text=True, timeout=300, check=True)
    (line,) = done.stdout.splitlines()
    name, bits_per_dim = line.split("\t")
    assert name == str(picture)
    assert math.isfinite(float(bits_per_dim))
    assert re.search(r"^integration error of 25 steps: \d\.\d{3} bits/dim \(how far 12 steps lead", done.stderr, re.M)
