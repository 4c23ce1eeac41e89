"""NCSN++ under exploding variance: a score network saved by diffusers, sampled in variance-preserving terms."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, ScoreSdeVeScheduler, UNet2DModel
from torch import Tensor

from denoised.model.backends.packed import can_pack, pack
from denoised.model.diffusion.noise import level_tables
from denoised.model.networks.unet.score_network import variance_exploding_schedule
from denoised.model.serving.conditioning import Conditioning
from denoised.model.serving.loading import load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import sample

SIGMA_MIN, SIGMA_MAX, TIMESTEPS = 0.01, 50.0, 200
NCSNPP: dict[str, Any] = {
    "sample_size": 8,
    "time_embedding_type": "fourier",
    "center_input_sample": True,
    "block_out_channels": (32, 32),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": 2**0.5,
    "attention_head_dim": None,
}
SavedNetwork = tuple[UNet2DModel, PixelModel]


@pytest.fixture
def saved(tmp_path: Path, stir: Callable[..., None]) -> SavedNetwork:
    """A diffusers network with random weights, and the model served from its folder."""
    theirs = UNet2DModel(**NCSNPP).eval()
    stir(theirs)
    scheduler = ScoreSdeVeScheduler(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, num_train_timesteps=TIMESTEPS)
    DDPMPipeline(theirs, scheduler).save_pretrained(tmp_path)
    return theirs, load_model(tmp_path)


def sigma_at(t: Tensor) -> Tensor:
    return SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** (t / (TIMESTEPS - 1))


def test_noise_levels_are_diffusers_sigmas_for_data_twice_as_wide() -> None:
    schedule = variance_exploding_schedule(SIGMA_MIN, SIGMA_MAX, TIMESTEPS)
    theirs = ScoreSdeVeScheduler(
        num_train_timesteps=TIMESTEPS, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX
    ).discrete_sigmas
    assert np.allclose(schedule.sigma / schedule.alpha, 2 * theirs.numpy(), rtol=1e-5)
    assert np.allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=1e-12)


@torch.inference_mode()
def test_the_estimate_follows_from_the_score_of_diffusers(saved: SavedNetwork) -> None:
    """Tweedie: x̂_0 = x_σ + σ²·score in [0, 1], which is 2·x̂_0 − 1 here; ε̂ = −σ·score."""
    theirs, model = saved
    t = torch.tensor([0.0, 60.0, 120.0, 199.0])
    sigma = sigma_at(t)
    x0 = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    epsilon = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x_sigma = x0 + sigma.view(-1, 1, 1, 1) * epsilon
    score = theirs(x_sigma, sigma).sample
    alpha, sigma_t = (table[t.long()] for table in level_tables(model.schedule))
    labels = Conditioning({"label": torch.zeros(4)})
    ours = model.denoise(alpha.view(-1, 1, 1, 1) * (2 * x_sigma - 1), t, alpha, sigma_t, labels)
    torch.testing.assert_close(ours.epsilon, -sigma.view(-1, 1, 1, 1) * score, rtol=1e-4, atol=1e-4)
    denoised = x_sigma + sigma.view(-1, 1, 1, 1) ** 2 * score
    torch.testing.assert_close(ours.x0, 2 * denoised - 1, rtol=1e-4, atol=1e-3)


@torch.inference_mode()
def test_euler_gives_the_same_image_as_under_exploding_variance(saved: SavedNetwork) -> None:
    """dx/dσ = −σ·score on diffusers' network, from x_T = σ_max·z + 1/2; ours starts at y_T = 2·x_T − 1 = 2σ_max·z."""
    theirs, model = saved
    steps = 12
    plan = model.plan("euler", steps, 0.0)
    t = torch.from_numpy(plan.t).float()
    sigmas = [*torch.from_numpy(plan.sigma / plan.alpha / 2).float(), torch.tensor(0.0)]
    torch.testing.assert_close(torch.stack(sigmas[:-1]), sigma_at(t), rtol=1e-3, atol=0)
    z = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(3))[None]
    x = sigmas[0] * z + 0.5
    for now, following in pairwise(sigmas):
        x = x - (following - now) * now * theirs(x, now[None]).sample
    ours = sample(model, [None], seed=3, sampler="euler", steps=steps)
    assert x.std() > 0.1
    torch.testing.assert_close(ours, 2 * x - 1, rtol=0, atol=1e-3)


@pytest.mark.skipif(not can_pack(torch.device("cpu")), reason="this torch has no oneDNN")
@torch.inference_mode()
def test_a_packed_score_network_is_the_same_function(saved: SavedNetwork) -> None:
    _, model = saved
    x, t = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 99.5, 199.0])
    plain = model.unet(x, t)
    torch.testing.assert_close(pack(model.unet)(x, t), plain, rtol=1e-4, atol=1e-4)


def test_a_score_network_is_served_with_the_settings_of_its_files(saved: SavedNetwork) -> None:
    _, model = saved
    assert model.card.timesteps == TIMESTEPS
    assert model.clipping.limit is None
    assert model.grid.spacing == "linspace"
    assert model.schedule.sigma[-1] / model.schedule.alpha[-1] == pytest.approx(2 * SIGMA_MAX)
