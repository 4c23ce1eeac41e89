"""Guidance rescale (Lin et al. 2023, arXiv:2305.08891, section 3.4)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from denoised.model.diffusion.guidance import rescale
from denoised.model.diffusion.predictions import PREDICTION_TYPES, estimate_from_output

ALPHA, SIGMA = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])


def random_images(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
def test_every_prediction_type_is_rescaled_as_in_the_paper(prediction_type: str, phi: float) -> None:
    x, plain, guided = random_images(0), random_images(1), random_images(2, 3.0)
    read = [estimate_from_output(output, x, ALPHA, SIGMA, prediction_type) for output in (guided, plain)]
    out = rescale(*read, x, ALPHA, SIGMA, prediction_type, torch.full((2,), phi))
    stds = [output.numpy().reshape(2, -1).std(axis=1, ddof=1) for output in (plain, guided)]
    ratio = torch.from_numpy(stds[0] / stds[1])[:, None, None, None]
    rescaled = phi * (guided * ratio) + (1 - phi) * guided  # eq. 15 and 16
    expected = estimate_from_output(rescaled, x, ALPHA, SIGMA, prediction_type)
    torch.testing.assert_close(out.x0, expected.x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.epsilon, expected.epsilon, rtol=1e-5, atol=1e-5)


def test_each_image_has_its_own_phi_and_zero_changes_no_bit() -> None:
    x, plain, guided = random_images(0), random_images(1), random_images(2, 3.0)
    read = [estimate_from_output(output, x, ALPHA, SIGMA, "v_prediction") for output in (guided, plain)]
    out = rescale(*read, x, ALPHA, SIGMA, "v_prediction", torch.tensor([0.0, 1.0]))
    assert torch.equal(out.x0[0], read[0].x0[0])
    assert torch.equal(out.epsilon[0], read[0].epsilon[0])
    v = ALPHA[1] * out.epsilon[1] - SIGMA[1] * out.x0[1]
    assert v.std().item() == pytest.approx(plain[1].std().item(), rel=1e-5)


def test_an_image_has_the_same_bits_alone_and_in_a_batch() -> None:
    x, plain, guided = random_images(0), random_images(1), random_images(2, 3.0)
    read = [estimate_from_output(output, x, ALPHA, SIGMA, "epsilon") for output in (guided, plain)]
    phi = torch.tensor([0.7, 0.4])
    both = rescale(*read, x, ALPHA, SIGMA, "epsilon", phi)
    for k in range(2):
        one = [each.select([k]) for each in read]
        alone = rescale(*one, x[k : k + 1], ALPHA[k : k + 1], SIGMA[k : k + 1], "epsilon", phi[k : k + 1])
        assert torch.equal(alone.x0[0], both.x0[k])


def test_an_output_of_standard_deviation_zero_stays_as_it_is() -> None:
    """mathematics.md, trap 41: std = 0 gives no division by zero."""
    flat = torch.zeros(2, 3, 8, 8)
    read = estimate_from_output(flat, random_images(0), ALPHA, SIGMA, "epsilon")
    out = rescale(read, read, random_images(0), ALPHA, SIGMA, "epsilon", torch.ones(2))
    torch.testing.assert_close(out.x0, read.x0)
    torch.testing.assert_close(out.epsilon, read.epsilon)
