"""The U-Net on a GPU: the same function, and the same bits in any batch. Skipped without a CUDA device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from denoised.model.backends.graphs import GraphedUNet
from denoised.model.backends.numerics import PRECISIONS, Precision
from denoised.model.backends.tile_size import Tiling
from denoised.model.errors import KernelError
from denoised.model.networks.unet.unet import UNet
from denoised.model.serving.loading import ZOO, load_model
from tests.model.networks.unet.configs import ATTENTION, NCSNPP, RESNETS

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
RELATIVE = {"float32": 1e-5, "tf32": 3e-3, "bfloat16": 3e-2, "float16": 4e-3}  # errors of an evaluation


def inputs(count: int, shape: tuple[int, ...], device: str = "cuda") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *shape, generator=generator)
    t = 1 + torch.rand(count, generator=generator) * 998
    return x.to(device), t.to(device), (torch.arange(count) % 3).to(device)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu() - expected.cpu()).norm() / expected.cpu().norm())


@CUDA
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bundled_model_is_the_same_function_as_on_a_cpu(precision: Precision) -> None:
    model = load_model(ZOO / "fashion-mnist")
    x, t, label = inputs(70, model.shape, "cpu")  # more than a run takes
    expected = model.unet(x, t, label)
    assert isinstance(model.unet, UNet)
    graphed = GraphedUNet(model.unet.to("cuda"), model.shape, model.card.timesteps, precision)
    assert relative(graphed(x.cuda(), t.cuda(), label.cuda()), expected) < RELATIVE[precision]


@CUDA
@pytest.mark.parametrize("config", [ATTENTION, RESNETS, NCSNPP], ids=["attention", "scale and shift", "ncsnpp"])
def test_an_image_has_the_same_bits_in_any_batch_and_place(config: Any) -> None:
    torch.manual_seed(0)
    unet = UNet(config).eval().requires_grad_(False).to("cuda")
    graphed = GraphedUNet(unet, (3, 16, 16), 1000, tiles=Tiling(4, 4))
    x, t, label = inputs(21, (3, 16, 16))
    torch.testing.assert_close(graphed(x, t, label), unet(x, t, label), atol=1e-3, rtol=1e-3)
    alone = torch.cat([graphed(x[k : k + 1], t[k : k + 1], label[k : k + 1]) for k in range(21)])
    for size in (1, 2, 7, 8, 9, 16, 21):
        members = torch.randperm(21)[:size].cuda()
        assert torch.equal(graphed(x[members], t[members], label[members]), alone[members]), size


@CUDA
def test_nan_stays_in_the_image_that_it_came_from_and_leaves_with_it() -> None:
    torch.manual_seed(0)
    unet = UNet(ATTENTION).eval().requires_grad_(False).to("cuda")
    graphed = GraphedUNet(unet, (3, 16, 16), 1000, tiles=Tiling(2, 2))
    x, t, label = inputs(4, (3, 16, 16))
    sound = graphed(x, t, label)
    broken = x.clone()
    broken[2, 0, 3, 3] = torch.nan
    out = graphed(broken, t, label)
    assert torch.isnan(out[2]).any()
    assert torch.equal(out[[0, 1, 3]], sound[[0, 1, 3]])
    assert torch.equal(graphed(x[:1], t[:1], label[:1]), sound[:1]), "the other rows still hold the others"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_the_error_gives_the_reason() -> None:
    with pytest.raises(KernelError, match="the network cannot be recorded on cpu"):
        GraphedUNet(UNet(ATTENTION).eval().requires_grad_(False), (3, 16, 16), 1000)
