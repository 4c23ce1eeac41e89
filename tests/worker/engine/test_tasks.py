"""Noise, scores and likelihoods of pictures, as images of the running batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoised.model.diffusion.likelihood_plan import bits, dequantization_noise, log_density_of_registers, probe_signs
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.predictions import Estimate, x0_from_epsilon
from denoised.model.errors import PlanError
from denoised.model.evaluation.likelihood import log_density
from denoised.model.serving.conditioning import Conditioning
from denoised.worker.delivery.pictures.task_outputs import arrays_of, likelihood_result, result_at_level
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.resume import ResumePoint, from_bytes, to_bytes
from denoised.worker.engine.trajectory import Trajectory
from tests.fake_model import SCHEDULE, FakeModel
from tests.harness import request as request_of

Make = Callable[..., list[Trajectory]]
DIGEST = "sha256:" + "0" * 64
GENERATOR = np.random.default_rng(3)
PICTURE = GENERATOR.integers(0, 256, (4, 4, 1), dtype=np.uint8)
IMAGE: dict[str, Any] = {"image": DIGEST, "pictures": {"image": PICTURE}}
MU = 0.1
WIDTHS = torch.linspace(0.2, 0.9, 16).view(1, 4, 4)


class GaussianModel(FakeModel):
    """A model that knows its data, N(μ, s²) of a width s for each pixel: ε* = σ·(x − αμ)/(α²s² + σ²)."""

    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
        a, s = (level.view(-1, 1, 1, 1) for level in (alpha, sigma))
        epsilon = s * (x - a * MU) / (a**2 * WIDTHS**2 + s**2)
        return Estimate(x0_from_epsilon(x, epsilon, alpha, sigma), epsilon)


def x0() -> Tensor:
    return torch.from_numpy(PICTURE).permute(2, 0, 1).float() / 127.5 - 1


def run(model: FakeModel, images: Sequence[Trajectory]) -> dict[tuple[str, int], Tensor]:
    """The last registers of every image."""
    engine = Engine({"fake": model}, 16)
    engine.batch.admit([image for image in images if not image.finished])
    found = {(image.job, image.index): image.registers for image in images if image.finished}
    while len(engine.batch):
        turn = engine.step()
        assert not turn.failed
        found |= {(i.trajectory.job, i.trajectory.index): i.registers for i in turn.advanced if i.result is not None}
    return found


def arrays(model: FakeModel, registers: Tensor, **fields: Any) -> dict[str, Any]:
    return dict(arrays_of(request_of(image=DIGEST, **fields), model, registers))


@pytest.mark.parametrize("level", [{"t": 0.0}, {"t": 417.0}, {"t": 417.5}, {"t": 999.0}, {"sigma": 0.3}])
def test_noise_is_the_forward_process_of_each_seed(model: FakeModel, trajectories_of: Make, level: Any) -> None:
    found = run(model, trajectories_of(model, "a", task="noise", n=2, seed=5, **level, **IMAGE))
    if "t" in level:
        alpha, sigma = (float(each[0]) for each in SCHEDULE.levels_at(np.array([level["t"]])))
    else:
        alpha = 1 / math.sqrt(1 + level["sigma"] ** 2)
        sigma = alpha * level["sigma"]
    for index in range(2):
        noise = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(5 + index))
        assert torch.equal(found["a", index][0], alpha * x0() + sigma * noise)
    assert model.calls == []  # no evaluation of the network
    result = result_at_level(request_of(task="noise", image=DIGEST, **level), model, {})
    assert result["level"]["alpha"] == pytest.approx(alpha, rel=1e-12)
    assert result["level"]["ratio"] == pytest.approx(sigma / alpha, rel=1e-12)


def test_a_timestep_and_its_noise_level_are_the_same_request(model: FakeModel, trajectories_of: Make) -> None:
    ratio = float(SCHEDULE.sigma[300] / SCHEDULE.alpha[300])
    by_time = run(model, trajectories_of(model, "a", task="score", t=300.0, **IMAGE))["a", 0]
    by_ratio = run(model, trajectories_of(model, "a", task="score", sigma=ratio, **IMAGE))["a", 0]
    torch.testing.assert_close(by_time, by_ratio, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adds_noise", [True, False])
@pytest.mark.parametrize("t", [3.0, 250.0, 990.0])
def test_the_score_of_gaussian_data_is_the_closed_form(trajectories_of: Make, t: float, adds_noise: bool) -> None:
    model = GaussianModel(limit=0.1)  # an image would be clipped, an estimate is not
    fields: dict[str, Any] = {"task": "score", "t": t, "adds_noise": adds_noise}
    found = arrays(model, run(model, trajectories_of(model, "a", **fields, **IMAGE))["a", 0], **fields)
    alpha, sigma = float(SCHEDULE.alpha[int(t)]), float(SCHEDULE.sigma[int(t)])
    noise = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(7))
    x_t = alpha * x0() + sigma * noise if adds_noise else x0()
    variance = alpha**2 * WIDTHS.double() ** 2 + sigma**2
    score = -(x_t.double() - alpha * MU) / variance
    np.testing.assert_array_equal(found["x_t"], x_t.numpy())
    np.testing.assert_allclose(found["score"], score.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["epsilon"], (-sigma * score).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["x0"], ((x_t + sigma**2 * score) / alpha).numpy(), rtol=2e-3, atol=1e-4)
    result = result_at_level(request_of(image=DIGEST, **fields), model, found)
    assert result["score_norm"] == pytest.approx(float(score.norm()), rel=1e-4)
    assert result["space"] == "pixels"


@pytest.mark.parametrize("t", [3.0, 250.0, 990.0])
def test_the_score_at_a_given_point_is_the_closed_form_of_gaussian_data(trajectories_of: Make, t: float) -> None:
    """Far from the data, too: the point is not limited to what a picture can hold."""
    model = GaussianModel(limit=0.1)
    point = 5 * torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(2))
    fields: dict[str, Any] = {"task": "score", "t": t, "x_t": DIGEST}
    pictures = {"x_t": point.flatten().numpy()}
    registers = run(model, trajectories_of(model, "a", pictures=pictures, **fields))["a", 0]
    found = dict(arrays_of(request_of(**fields), model, registers))
    alpha, sigma = float(SCHEDULE.alpha[int(t)]), float(SCHEDULE.sigma[int(t)])
    score = -(point.double() - alpha * MU) / (alpha**2 * WIDTHS.double() ** 2 + sigma**2)
    np.testing.assert_array_equal(found["x_t"], point.numpy())
    np.testing.assert_allclose(found["score"], score.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(PlanError, match="x_t has 15 numbers"):
        trajectories_of(model, "a", pictures={"x_t": pictures["x_t"][1:]}, **fields)


def test_a_guided_score_follows_the_guided_noise_prediction(model: FakeModel, trajectories_of: Make) -> None:
    def epsilon(**fields: Any) -> Tensor:
        return run(model, trajectories_of(model, "a", task="score", t=500.0, **fields, **IMAGE))["a", 0][1]

    conditional, free = epsilon(label=1), epsilon(label=None)
    guided = epsilon(label=1, guidance_scale=3.0)
    torch.testing.assert_close(guided, free + 3 * (conditional - free), rtol=1e-4, atol=1e-4)


def test_estimates_next_to_ordinary_images_have_the_same_bytes(model: FakeModel, trajectories_of: Make) -> None:
    def jobs() -> dict[str, list[Trajectory]]:
        return {
            "score": trajectories_of(model, "score", task="score", t=400.0, label=2, **IMAGE),
            "likelihood": trajectories_of(model, "likelihood", task="likelihood", steps=3, n=2, **IMAGE),
            "image": trajectories_of(model, "image", steps=6, sampler="dpmpp_2m", label=1, guidance_scale=2.0, n=2),
            "noisy": trajectories_of(model, "noisy", task="noise", t=100.0, **IMAGE),
        }

    together = run(model, [image for images in jobs().values() for image in images])
    for images in jobs().values():
        for key, registers in run(model, images).items():
            assert torch.equal(registers, together[key]), key


@pytest.mark.parametrize("probe", [11, 12])
def test_the_likelihood_of_gaussian_data_is_the_closed_form(trajectories_of: Make, probe: int) -> None:
    """The Jacobian is diagonal, so that one vector of random signs gives the trace exactly."""
    model = GaussianModel(limit=0.1)
    found = run(model, trajectories_of(model, "a", task="likelihood", steps=60, seed=probe, **IMAGE))["a", 0]
    noise = dequantization_noise((1, 4, 4), probe).double()
    pixels = (torch.from_numpy(PICTURE).permute(2, 0, 1).double() + noise) / 127.5 - 1
    # The path begins at the lowest level, where the data are wider by its noise.
    widths = (WIDTHS.double() ** 2 + (SCHEDULE.sigma[0] / SCHEDULE.alpha[0]) ** 2).sqrt()
    exact = float(torch.distributions.Normal(MU, widths).log_prob(pixels).sum())
    assert log_density_of_registers(found, SCHEDULE, 60) == pytest.approx(exact, abs=0.01)


def test_the_likelihood_equals_the_one_by_gradients(trajectories_of: Make) -> None:
    """`denoised likelihood` computes vᵀJv by backpropagation, for the same signs and on the same path."""

    class Curved(FakeModel):
        """ε̂ = σ·x·(1 + ½·sin x), so that no derivative is constant."""

        def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
            epsilon = sigma.view(-1, 1, 1, 1) * x * (1 + torch.sin(x) / 2)
            return Estimate(x0_from_epsilon(x, epsilon, alpha, sigma), epsilon)

    model = Curved()
    found = run(model, trajectories_of(model, "a", task="likelihood", steps=40, seed=2, **IMAGE))["a", 0]
    pixels = (torch.from_numpy(PICTURE).permute(2, 0, 1).double() + dequantization_noise((1, 4, 4), 2)) / 127.5 - 1

    def epsilon(x: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        return sigma * x * (1 + torch.sin(x) / 2)

    flow = log_density(epsilon, SCHEDULE, pixels[None], steps=40, seeds=[2])
    assert log_density_of_registers(found, SCHEDULE, 40) == pytest.approx(float(flow.log_density), abs=0.02)


def test_the_standard_error_is_that_of_the_estimates(trajectories_of: Make) -> None:
    model = GaussianModel()
    found = run(model, trajectories_of(model, "a", task="likelihood", steps=10, n=3, seed=4, **IMAGE))
    request = request_of(task="likelihood", steps=10, n=3, image=DIGEST)
    result = likelihood_result(request, model, [found["a", index] for index in range(3)])
    each = [bits(log_density_of_registers(found["a", index], SCHEDULE, 10), 16) for index in range(3)]
    assert result["estimates"] == each
    assert result["bits_per_dimension"] == pytest.approx(np.mean(each))
    assert result["standard_error"] == pytest.approx(np.std(each, ddof=1) / math.sqrt(3))
    assert result["dimensions"] == 16


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 9])
def test_a_likelihood_resumed_at_any_row_comes_to_the_same_number(
    model: FakeModel, trajectories_of: Make, rows: int
) -> None:
    def begin() -> list[Trajectory]:
        return trajectories_of(model, "a", task="likelihood", steps=2, seed=6, **IMAGE)

    engine = Engine({"fake": model}, 16)
    (image,) = begin()
    engine.batch.admit([image])
    for _ in range(rows):
        engine.step()
    saved = from_bytes(to_bytes({0: ResumePoint(image.row, image.registers)}))
    (resumed,) = begin()
    resumed.resume(saved[0])
    assert torch.equal(run(model, [resumed])["a", 0], run(model, begin())["a", 0])


@pytest.mark.parametrize("level", [{}, {"t": -1.0}, {"t": 1000.0}, {"sigma": 0.0}])
def test_a_level_that_the_model_does_not_have_is_refused(model: FakeModel, trajectories_of: Make, level: Any) -> None:
    with pytest.raises(PlanError, match="allowed: t in 0 … 999, or sigma over 0"):
        trajectories_of(model, "a", task="score", **level, **IMAGE)


def test_the_signs_of_a_seed_have_no_bias() -> None:
    signs = probe_signs((100, 100), 1, 3)
    assert set(signs.flatten().tolist()) == {-1, 1}
    assert abs(float(signs.float().mean())) < 0.05


def test_a_schedule_that_ends_in_noise_alone_has_levels_to_its_last_finite_one(trajectories_of: Make) -> None:
    class ZeroTerminal(GaussianModel):
        schedule = NoiseSchedule.from_name("linear").with_zero_terminal_snr()

    model = ZeroTerminal()
    found = run(model, trajectories_of(model, "a", task="likelihood", steps=5, **IMAGE))["a", 0]
    assert math.isfinite(log_density_of_registers(found, model.schedule, 5))
    noise = run(model, trajectories_of(model, "b", task="noise", t=999.0, **IMAGE))["b", 0][0]
    assert torch.equal(noise, torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(7)))
