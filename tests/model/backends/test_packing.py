"""Kernels that give an image the same bits in a batch of any size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from denoised.model.backends.packed import can_pack, pack
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from tests.model.networks.unet.configs import ATTENTION, NCSNPP, RESNETS
from tests.rounding import assert_rounded, in_float64, terms_of

CONFIGS = {"attention": ATTENTION, "resnet resampling": RESNETS, "ncsnpp": NCSNPP}
EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())

pytestmark = pytest.mark.skipif(not can_pack(torch.device("cpu")), reason="this torch has no oneDNN")


@EVERY
@torch.inference_mode()
def test_packed_rows_have_the_same_bits_at_every_batch_size_and_place(config: UNetConfig) -> None:
    torch.manual_seed(0)
    network = pack(UNet(config).eval())
    x, t, label = torch.randn(16, 3, 16, 16), 1 + torch.rand(16) * 998, torch.randint(1, 4, (16,))
    together = network(x, t, label)
    for size in range(1, 16):
        assert torch.equal(network(x[:size], t[:size], label[:size]), together[:size]), size
    order = torch.randperm(16)
    assert torch.equal(network(x[order], t[order], label[order]), together[order])


SIDES = ((16, 16), (6, 10), (14, 14), (20, 20), (12, 12), (32, 32))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("config", "sides", "threads"),
    [
        # Each architecture with two of the sides and of the numbers of threads; the others are slow tests.
        pytest.param(
            CONFIGS[name], sides, threads, id=f"{name}-{sides}-{threads}", marks=() if quick else pytest.mark.slow
        )
        for i, name in enumerate(CONFIGS)
        for j, sides in enumerate(SIDES)
        for k, threads in enumerate((2, 3, 5))
        for quick in [i == j % 3 and k == (j % 3 + j // 3) % 3]
    ],
)
def test_neither_the_threads_nor_odd_sides_change_a_bit(
    config: UNetConfig, threads: int, sides: tuple[int, int]
) -> None:
    """SiLU rounds its last elements differently, and which these are depends on size, batch and threads."""
    torch.manual_seed(2)
    network = pack(UNet(config).eval())
    count = 8 if sides[0] * sides[1] < 400 else 5
    x, t, label = torch.randn(count, 3, *sides), 1 + torch.rand(count) * 998, torch.randint(1, 4, (count,))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = network(x, t, label)
        for size in range(1, count):
            assert torch.equal(network(x[:size], t[:size], label[:size]), together[:size]), size
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def test_mish_is_applied_image_by_image_too() -> None:
    network = pack(UNet(replace(ATTENTION, act_fn="mish")).eval())
    x, t, label = torch.randn(7, 3, 6, 10), torch.rand(7) * 999, torch.randint(1, 4, (7,))
    together = network(x, t, label)
    for size in range(1, 7):
        assert torch.equal(network(x[:size], t[:size], label[:size]), together[:size]), size


@EVERY
@torch.inference_mode()
def test_packed_is_the_same_function(config: UNetConfig) -> None:
    torch.manual_seed(1)
    network = UNet(config).eval()
    x, t, label = torch.randn(5, 3, 16, 16), 1 + torch.rand(5) * 998, torch.randint(1, 4, (5,))
    expected, terms = in_float64(network)(x.double(), t, label), terms_of(network)
    packed = pack(network)
    assert not [layer for layer in packed.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert_rounded(packed(x, t, label), expected, terms=terms)
