"""Whole runs of the reverse diffusion by the plain loop, compared with diffusers pipelines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler
from torch import Tensor

from denoised.model.backends.packed import pack
from denoised.model.errors import PlanError
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.loading import load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import initial_noise, sample

Folder = Callable[..., Path]


@pytest.fixture
def model(folder: Folder) -> PixelModel:
    return load_model(folder())


def generators(seed: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + k) for k in range(count)]


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_image_k_is_the_image_of_seed_plus_k_alone(
    model: PixelModel, sampler: str, eta: float, guidance_scale: float
) -> None:
    """mathematics.md, trap 15, to the last bit: packed kernels are the same at every batch size."""
    pack(model.unet)

    def run(labels: list[int | None], seed: int) -> Tensor:
        return sample(model, labels, seed=seed, sampler=sampler, steps=6, eta=eta, guidance_scale=guidance_scale)

    labels = [2, None, 0]
    together = run(labels, 40)
    alone = torch.cat([run([label], 40 + k) for k, label in enumerate(labels)])
    assert torch.equal(together, alone)


def test_an_image_whose_pixels_are_no_multiple_of_sixteen_has_its_own_noise_too(
    folder: Folder, conditional: UNetConfig
) -> None:
    """mathematics.md, trap 16: of 60 numbers, one draw of two rows is not two draws of a row, as it is of 64.

    With a tolerance: that noise is another one is seen by more than the last bits, which are the kernels' affair.
    """
    whole, single = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    rows = torch.stack([torch.randn(60, generator=single) for _ in range(2)])
    assert not torch.equal(torch.randn(2, 60, generator=whole), rows)
    model = load_model(folder(dataclasses.replace(conditional, sample_size=(6, 10)), clip_sample=False))
    labels = [2, None, 0]
    together = sample(model, labels, seed=40, sampler="ddpm", steps=4)
    alone = [sample(model, [label], seed=40 + k, sampler="ddpm", steps=4) for k, label in enumerate(labels)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_no_run_influences_the_next(model: PixelModel) -> None:
    """mathematics.md, traps 18, 31 and 38: one image, then four, then one again, runs of every sampler in between."""
    pack(model.unet)

    def runs(labels: list[int | None]) -> dict[str, Tensor]:
        return {sampler: sample(model, labels, seed=7, sampler=sampler, steps=4) for sampler in model.card.samplers}

    first, wide, again = runs([1]), runs([1, None, 0, 2]), runs([1])
    for sampler in model.card.samplers:
        assert wide[sampler].shape == (4, 1, 8, 8)
        assert torch.equal(wide[sampler][:1], first[sampler]), sampler
        assert torch.equal(again[sampler], first[sampler]), sampler


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_image(model: PixelModel) -> None:
    first, again, other = (sample(model, [1], seed=seed, steps=5) for seed in (9, 9, 10))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.1


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 10])
def test_the_same_seed_gives_the_picture_of_a_diffusers_ddim_pipeline(
    folder: Folder, unconditional: UNetConfig, steps: int, eta: float
) -> None:
    """One CPU generator per image, x_T its first draw: at most one level of 255 apart."""
    path = folder(unconditional, timestep_spacing="leading")
    ours = load_model(path)
    theirs = DDIMPipeline.from_pretrained(path)
    theirs.set_progress_bar_config(disable=True)
    images = theirs(
        batch_size=3, generator=generators(5, 3), num_inference_steps=steps, eta=eta, output_type="np"
    ).images
    expected = (images * 255).round()
    x0 = sample(ours, [None] * 3, seed=5, steps=steps, eta=eta)
    found = ours.decode(x0).astype(np.float64)
    assert np.abs(found - expected).max() <= 1
    assert expected.std() > 10, "the images of this test are almost uniform"


def test_the_same_seed_gives_the_picture_of_a_diffusers_ddpm_pipeline(
    folder: Folder, unconditional: UNetConfig
) -> None:
    path = folder(unconditional, timestep_spacing="leading", variance_type="fixed_large")
    ours = load_model(path)
    unet = DDIMPipeline.from_pretrained(path).unet
    theirs = DDPMPipeline(unet, DDPMScheduler(variance_type="fixed_large"))
    theirs.set_progress_bar_config(disable=True)
    images = theirs(batch_size=2, generator=generators(3, 2), num_inference_steps=8, output_type="np").images
    x0 = sample(ours, [None] * 2, seed=3, sampler="ddpm", steps=8)
    found = ours.decode(x0).astype(np.float64)
    assert np.abs(found - (images * 255).round()).max() <= 1


def test_guidance_of_one_is_the_labeled_run_and_more_moves_away_from_it(model: PixelModel) -> None:
    """mathematics.md, trap 41."""
    plain, one, three = (sample(model, [1], seed=1, steps=4, **more) for more in ({}, guided(1.0), guided(3.0)))
    assert torch.equal(plain, one)
    assert (plain - three).abs().max() > 1e-3


def guided(scale: float) -> dict[str, float]:
    return {"guidance_scale": scale}


def test_guidance_between_no_label_and_no_label_changes_nothing(folder: Folder) -> None:
    """mathematics.md, trap 41: cond = uncond leaves the picture for every scale (where nothing is clipped)."""
    model = load_model(folder(clip_sample=False))
    plain, ten = (sample(model, [None], seed=1, steps=4, guidance_scale=scale) for scale in (1.0, 10.0))
    torch.testing.assert_close(plain, ten, rtol=0, atol=1e-5)


def test_a_clipped_run_ends_within_the_range_of_pictures(folder: Folder) -> None:
    """The last row of DDIM is x̂_0 itself."""
    clipped = sample(load_model(folder()), [0], steps=3)
    free = sample(load_model(folder(clip_sample=False)), [0], steps=3)
    assert clipped.abs().max() <= 1.0
    assert free.abs().max() > 1.0


def test_noise_is_drawn_for_each_image_in_its_own_shape() -> None:
    """mathematics.md, traps 14–16: CPU, float32, one generator per image; the second draw continues the first."""
    generator = torch.Generator().manual_seed(3)
    first, second = initial_noise(generator, (1, 5, 4)), initial_noise(generator, (1, 5, 4))
    reference = torch.Generator().manual_seed(3)
    assert torch.equal(first, torch.randn(1, 5, 4, generator=reference))
    assert torch.equal(second, torch.randn(1, 5, 4, generator=reference))
    assert first.dtype == torch.float32
    assert first.device.type == "cpu"


def test_an_unknown_sampler_is_refused_before_any_noise_is_drawn(model: PixelModel) -> None:
    with pytest.raises(PlanError, match="sampler = 'dpm_fast' is not offered"):
        sample(model, [0], sampler="dpm_fast")
