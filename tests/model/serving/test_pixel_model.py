"""The stages of a served model, and guidance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.guidance import guide
from denoised.model.diffusion.predictions import PREDICTION_TYPES, Estimate, epsilon_from_x0
from denoised.model.errors import PlanError
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.loading import load_model
from denoised.model.serving.pixel_model import PixelModel

Folder = Callable[..., Path]


@pytest.fixture
def model(folder: Folder) -> PixelModel:
    return load_model(folder())


def levels(model: PixelModel, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(model.schedule.alpha)[t].float(), torch.from_numpy(model.schedule.sigma)[t].float()


def test_the_ends_of_the_range_are_black_and_white(model: PixelModel) -> None:
    """mathematics.md, trap 23: −1 → 0, 1 → 255, and values outside are clipped."""
    x0 = torch.tensor([-1.0, 1.0, -7.0, 7.0, float("-inf"), float("inf")]).view(1, 1, 2, 3)
    assert model.decode(x0).ravel().tolist() == [0, 255, 0, 255, 0, 255]


def test_every_byte_survives_conversion_to_the_model_range_and_back(model: PixelModel) -> None:
    """mathematics.md, trap 23: k/127.5 − 1 comes back as k for all k = 0 … 255."""
    k = torch.arange(256)
    decoded = model.decode((k.float() / 127.5 - 1.0).view(1, 1, 16, 16))
    assert decoded.ravel().tolist() == k.tolist()


def test_decoding_rounds_as_diffusers_does(model: PixelModel) -> None:
    """diffusers: ((x/2 + 0.5).clamp(0, 1)·255).round(); 0 is 127.5, half to even, 128 (mathematics.md, trap 23)."""
    x0 = torch.linspace(-1.2, 1.2, 3001)
    expected = ((x0 / 2 + 0.5).clamp(0, 1).numpy() * 255).round().astype("uint8")
    assert model.decode(x0.view(1, 1, 1, -1)).ravel().tolist() == expected.tolist()
    assert model.decode(torch.zeros(1, 1, 1, 1)).item() == 128


def test_a_decoded_picture_is_height_width_channels(model: PixelModel) -> None:
    x0 = torch.full((2, 3, 4, 5), -1.0)
    x0[1, 1, 2, 3] = 1.0
    decoded = model.decode(x0)
    assert decoded.shape == (2, 4, 5, 3)
    assert decoded.dtype == np.uint8
    assert decoded[0].max() == 0
    assert decoded[1, 2, 3].tolist() == [0, 255, 0]


def test_pictures_decoded_together_are_those_decoded_alone(model: PixelModel) -> None:
    x0 = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    together = model.decode(x0)
    assert all(np.array_equal(together[k], model.decode(x0[k : k + 1])[0]) for k in range(3))
    assert np.array_equal(model.preview(x0), together)


def test_half_precision_is_decoded_from_its_own_values(model: PixelModel) -> None:
    x0 = torch.tensor([-1.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert model.decode(x0.half()).ravel().tolist() == [0, 191, 255]


def test_no_label_is_the_index_after_the_last_class(model: PixelModel) -> None:
    """mathematics.md, trap 24: K is null, K − 1 a class."""
    conditioning = model.encode([ConditioningRequest(), ConditioningRequest(label=2), ConditioningRequest(label=0)])
    assert conditioning["label"].tolist() == [3, 2, 0]
    assert conditioning["label"].dtype == torch.int64
    assert len(conditioning) == 3


def test_a_model_without_classes_takes_no_label(folder: Folder, unconditional: UNetConfig) -> None:
    model = load_model(folder(unconditional))
    conditioning = model.encode([ConditioningRequest()] * 2)
    t = torch.tensor([5, 900])
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert model.denoise(x, t, *levels(model, t), conditioning).epsilon.shape == x.shape


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_an_estimate_and_its_noise_make_up_the_noisy_image(folder: Folder, prediction_type: str) -> None:
    """x_t = α·x̂_0 + σ·ε̂, whatever the network predicts, each image at its own level."""
    model = load_model(folder(prediction_type=prediction_type))
    t = torch.tensor([5, 400, 900])
    alpha, sigma = levels(model, t)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    read = model.denoise(x, t, alpha, sigma, Conditioning({"label": torch.tensor([0, 1, 3])}))
    again = alpha.view(-1, 1, 1, 1) * read.x0 + sigma.view(-1, 1, 1, 1) * read.epsilon
    torch.testing.assert_close(again, x, rtol=1e-5, atol=1e-5)


def test_a_row_is_independent_of_its_neighbors(model: PixelModel) -> None:
    """At one batch size, a row's bits are its own."""
    t = torch.tensor([5, 400, 900, 20])
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 3, 2])
    before = model.denoise(x, t, *levels(model, t), Conditioning({"label": labels})).epsilon
    others, t[1:], labels[1:] = x.clone(), torch.tensor([1, 2, 3]), torch.tensor([1, 1, 1])
    others[1:] = 50.0
    after = model.denoise(others, t, *levels(model, t), Conditioning({"label": labels})).epsilon
    assert torch.equal(before[0], after[0])


def clipped(limit: float | None, x0: list[float], guided: bool) -> Estimate:
    """Clipping of images of one pixel, at α = 0.6, σ = 0.8 and x = 1."""
    count = len(x0)
    value = torch.tensor(x0).view(count, 1, 1, 1)
    x, alpha, sigma = torch.ones(count, 1, 1, 1), torch.full((count,), 0.6), torch.full((count,), 0.8)
    read = Estimate(value, epsilon_from_x0(x, value, alpha, sigma))
    return Clipping(limit)(read, x, alpha, sigma, torch.full((count,), guided))


def test_clipping_keeps_the_estimate_within_its_limit() -> None:
    x0 = [-3.0, -1.0, 0.2, 2.0]
    for guided in (False, True):
        assert clipped(1.0, x0, guided).x0.flatten().tolist() == pytest.approx([-1.0, -1.0, 0.2, 1.0])
        assert clipped(2.5, x0, guided).x0.flatten().tolist() == pytest.approx([-2.5, -1.0, 0.2, 2.0])
        assert clipped(None, x0, guided).x0.flatten().tolist() == pytest.approx(x0)


def test_after_clipping_the_noise_is_the_networks_own_unless_guidance_is_on() -> None:
    """mathematics.md, trap 10: x̂_0 = 2 clipped to 1; ε̂ = (1 − 0.6·2)/0.8 kept, (1 − 0.6)/0.8 re-derived."""
    assert clipped(1.0, [2.0], guided=False).epsilon.item() == pytest.approx(-0.25)
    assert clipped(1.0, [2.0], guided=True).epsilon.item() == pytest.approx(0.5)
    assert clipped(1.0, [0.5], guided=True).epsilon.item() == pytest.approx((1 - 0.6 * 0.5) / 0.8)


def test_dynamic_thresholding_looks_at_one_image_at_a_time() -> None:
    """mathematics.md, trap 11: s = clamp(quantile(|x̂_0|, .995), 1, max) of each; a small image stays as it is."""
    small = torch.linspace(-0.9, 0.9, 400).view(1, 1, 20, 20)
    huge = torch.linspace(-4.0, 4.0, 400).view(1, 1, 20, 20)
    level = torch.full((2,), 0.6), torch.full((2,), 0.8)
    both = torch.cat([small, huge])
    out = Clipping(3.0, 0.995)(Estimate(both, both), both, *level, torch.zeros(2, dtype=torch.bool))
    assert torch.equal(out.x0[0], small[0])
    assert torch.equal(out.epsilon, both)
    assert out.x0[1].abs().max() == 1.0
    assert out.x0[1].flatten()[250] == pytest.approx(
        huge.flatten()[250].item() / 3.0
    )  # the quantile 3.98, limited to 3


@pytest.mark.parametrize(("ratio", "most"), [(0.995, 1.0), (0.9, 5.0), (0.5, 2.0)])
def test_dynamic_thresholding_is_that_of_diffusers(ratio: float, most: float) -> None:
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=most)
    x0 = (
        torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.3, 1.0, 3.0])[:, None, None, None]
    )
    level = torch.full((3,), 0.6), torch.full((3,), 0.8)
    out = Clipping(most, ratio)(Estimate(x0, x0), x0, *level, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(out.x0, scheduler._threshold_sample(x0), rtol=1e-6, atol=1e-6)


def test_a_scheduler_file_decides_between_clipping_and_thresholding(folder: Folder) -> None:
    assert load_model(folder()).clipping == Clipping(1.0)
    assert load_model(folder(clip_sample=False)).clipping == Clipping(None)
    thresholding = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}
    assert load_model(folder(clip_sample=True, **thresholding)).clipping == Clipping(2.0, 0.9)


def test_a_plan_is_on_the_models_own_schedule_and_compiled_once(model: PixelModel) -> None:
    plan = model.plan("ddim", 10, 0.0)
    assert plan.t[0] == 999
    assert plan.alpha[0] == model.schedule.alpha[999]
    assert model.plan("ddim", 10, 0.0) is plan
    with pytest.raises(PlanError, match="steps = 1001"):
        model.plan("ddim", 1001, 0.0)


def guided(scale: float) -> Estimate:
    conditional = Estimate(torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), -1.0))
    unconditional = Estimate(torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 0.5))
    return guide(conditional, unconditional, torch.tensor([scale]))


def test_guidance_goes_from_the_unconditional_estimate_past_the_conditional_one() -> None:
    """mathematics.md, trap 41: uncond + s·(cond − uncond): s = 1 is conditional, s = 0 unconditional, s = 2 beyond."""
    assert [(guided(s).x0.item(), guided(s).epsilon.item()) for s in (0.0, 1.0, 2.0)] == [
        (1.0, 0.5),
        (3.0, -1.0),
        (5.0, -2.5),
    ]


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, 20.0])
def test_guidance_between_equal_estimates_changes_nothing(scale: float) -> None:
    """mathematics.md, trap 41."""
    same = Estimate(torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3))
    out = guide(same, same, torch.full((2,), scale))
    assert torch.equal(out.x0, same.x0)
    assert torch.equal(out.epsilon, same.epsilon)


def test_each_image_has_its_own_guidance() -> None:
    conditional = Estimate(torch.ones(3, 1, 2, 2), torch.ones(3, 1, 2, 2))
    unconditional = Estimate(torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2))
    out = guide(conditional, unconditional, torch.tensor([0.0, 1.0, 4.0]))
    assert out.x0[:, 0, 0, 0].tolist() == [0.0, 1.0, 4.0]
