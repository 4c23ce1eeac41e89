"""Muon: orthogonal updates, torch's own Muon on matrices, and which weights it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.training.learning_config import LearningConfig
from denoised.model.training.optimizers import Muon, hidden_matrices, make_optimizers, orthogonalize
from denoised.model.training.text_to_image.text_presets import TEXT_PRESETS, text_encoder_config, text_unet_config
from denoised.model.training.text_to_image.text_trainer import TextToImageNet

SHAPES = [(5, 5), (4, 31), (31, 4), (1, 9), (9, 1)]


def with_singular_values(values: list[float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A matrix (N, 2·N) with these singular values, and its nearest orthogonal one."""
    count = len(values)
    u = torch.linalg.qr(torch.randn(count, count, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(2 * count, count, generator=generator))[0]
    return u @ torch.diag(torch.tensor(values)) @ v.T, u @ v.T


def test_orthogonalize_keeps_the_directions_and_makes_the_lengths_about_one() -> None:
    """Jordan's coefficients end between .68 and 1.13, plus the rounding of bfloat16 (2⁻⁸ a product)."""
    matrix, nearest = with_singular_values([3.0, 1.0, 0.3, 0.05], torch.Generator().manual_seed(0))
    found = orthogonalize(matrix)
    lengths = torch.linalg.svdvals(found)
    assert found.dtype == torch.float32
    assert 0.65 < lengths.min() <= lengths.max() < 1.2
    cosine = (found * nearest).sum() / (found.norm() * nearest.norm())
    assert cosine > 0.97


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_takes_any_shape_and_any_scale(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalize(matrix)
    assert found.shape == shape
    torch.testing.assert_close(orthogonalize(matrix * 2.0**20), found)
    # A square matrix is multiplied in the other order; each of the iterations rounds to bfloat16.
    torch.testing.assert_close(orthogonalize(matrix.T), found.T, rtol=0, atol=0.05)


def test_a_gradient_of_zero_changes_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_on_matrices_the_steps_equal_torch_s_muon(shape: tuple[int, int], decay: float) -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    muon = Muon([ours], lr=0.02, weight_decay=decay)
    torch_s = torch.optim.Muon([theirs], lr=0.02, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        torch_s.step()
    # Both iterate in bfloat16; the order of the sums may differ by a rounding of 2⁻⁸ an update of about .02·.2.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4 * 0.02 * 2**-8)
    assert not torch.equal(ours, start)


def test_a_convolution_is_the_matrix_of_its_output_channels() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    gradient = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(4))
    convolution = nn.Parameter(weight.to(memory_format=torch.channels_last))
    matrix = nn.Parameter(weight.flatten(1).clone())
    convolution.grad, matrix.grad = gradient.to(memory_format=torch.channels_last), gradient.flatten(1).clone()
    for parameter in (convolution, matrix):
        Muon([parameter], lr=0.1).step()
    torch.testing.assert_close(convolution.flatten(1), matrix, rtol=0, atol=0.1 * 2**-8)


def test_muon_takes_the_hidden_matrices_of_a_text_model_and_adamw_the_rest() -> None:
    preset = TEXT_PRESETS["tiny"]
    net = TextToImageNet(
        TextUNet(text_unet_config(preset, 4)), TextEncoder(text_encoder_config(preset, 300, 8), projected=False)
    )
    matrices = hidden_matrices(net)
    assert {"unet.mid_block.resnets.0.conv1.weight", "unet.time_embedding.linear_1.weight"} <= matrices
    assert not {name for name in matrices if "embeddings" in name or "conv_in" in name or "conv_out" in name}
    made = make_optimizers(LearningConfig(optimizer="muon"), net)
    shapes = {
        kind: [parameter.dim() for group in each.param_groups for parameter in group["params"]]
        for kind, each in made.items()
    }
    assert min(shapes["muon"]) == 2
    assert len(shapes["muon"]) == len(matrices)
    assert sum(map(len, shapes.values())) == len(list(net.parameters()))
    assert list(make_optimizers(LearningConfig(), net)) == ["optimizer"]
