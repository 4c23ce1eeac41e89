"""Config keys that change the function of a U-Net but none of its tensors.

Expected values are closed forms, or those of diffusers 0.42.1 where its rule is the only source.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from denoised.model.networks.unet.embeddings import FourierFeatures, LearnedTimesteps, sinusoidal_features
from denoised.model.networks.unet.fir import fir_downsample, fir_upsample
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_blocks import MidBlock
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.networks.unet.unet_layers import Attention, Downsample

SMALL = UNetConfig(norm_num_groups=4)


def test_the_two_conventions_of_time_features_at_zero() -> None:
    """At t = 0 the first half is 0 in Ho's order (sin‖cos), 1 in OpenAI's (cos‖sin)."""
    zero = torch.zeros(1)
    ho = sinusoidal_features(zero, 8, flip_sin_to_cos=False, freq_shift=1)
    openai = sinusoidal_features(zero, 8, flip_sin_to_cos=True, freq_shift=0)
    assert ho.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert openai.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


def test_time_features_divide_by_half_less_the_shift() -> None:
    """Frequencies exp(−ln 10000·i/(half − shift)); with shift 1 the last is 1/10000."""
    t = torch.tensor([500.0])
    shifted = sinusoidal_features(t, 8, flip_sin_to_cos=False, freq_shift=1)[0]
    plain = sinusoidal_features(t, 8, flip_sin_to_cos=True, freq_shift=0)[0]
    assert shifted[3].item() == pytest.approx(math.sin(500 / 10_000), abs=1e-6)
    assert plain[7].item() == pytest.approx(math.sin(500 / 10_000**0.75), abs=1e-6)
    assert plain[3].item() == pytest.approx(math.cos(500 / 10_000**0.75), abs=1e-6)


def test_time_features_are_defined_between_timesteps() -> None:
    low, middle, high = sinusoidal_features(
        torch.tensor([749.0, 749.25, 750.0]), 16, flip_sin_to_cos=True, freq_shift=0
    )
    assert not torch.equal(low, middle)
    assert not torch.equal(middle, high)


def test_fourier_features_take_the_logarithm_of_sigma() -> None:
    """sin‖cos of 2π·w·log σ (Song et al. 2021): σ = 1 gives angle 0, σ = e gives 2π·w."""
    features = FourierFeatures(2)
    features.weight.data = torch.tensor([0.25, 1 / 12])
    expected = [[0.0, 0.0, 1.0, 1.0], [1.0, 0.5, 0.0, math.sqrt(3) / 2]]
    torch.testing.assert_close(features(torch.tensor([1.0, math.e])), torch.tensor(expected), rtol=0, atol=1e-6)


def test_a_learned_embedding_between_two_timesteps_is_the_nearer_ones() -> None:
    learned = LearnedTimesteps(10, 4)
    t = torch.tensor([3.0, 3.25, 3.75, 9.0])
    assert torch.equal(learned(t), learned.weight[[3, 3, 4, 9]])


def test_a_network_with_fourier_features_divides_its_output_by_sigma() -> None:
    """Twice the σ, half the output, when the embedding does not depend on σ."""
    config = UNetConfig(
        time_embedding_type="fourier",
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    net = UNet(config).eval()
    net.time_embedding.linear_2.weight.data.zero_()
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    with torch.inference_mode():
        ten, twenty = net(x, torch.tensor([10.0, 20.0]))
    torch.testing.assert_close(ten, 2 * twenty, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("head_dim", "heads"), [(None, 1), (8, 8), (64, 1), (16, 4)])
def test_attention_head_dim_is_the_channels_per_head_and_null_means_one_head(head_dim: int | None, heads: int) -> None:
    assert Attention(64, UNetConfig(attention_head_dim=head_dim), None).heads == heads


@pytest.mark.parametrize(
    ("shift", "groups", "normed"),
    [("default", None, 4), ("default", 2, 2), ("scale_shift", None, None), ("scale_shift", 2, 2)],
)
def test_the_middle_attention_loses_its_norm_with_scale_and_shift(
    shift: str, groups: int | None, normed: int | None
) -> None:
    """diffusers 0.42.1: without attn_norm_num_groups there is a norm only if resnet_time_scale_shift is "default"."""
    config = UNetConfig(resnet_time_scale_shift=shift, attn_norm_num_groups=groups, norm_num_groups=4)
    keys = {key for key in MidBlock(8, config, 16).state_dict() if "group_norm" in key}
    assert keys == ({"attentions.0.group_norm.weight", "attentions.0.group_norm.bias"} if normed else set())
    attention = MidBlock(8, config, 16).attentions
    assert attention is not None
    norm = attention[0].group_norm
    assert (norm.num_groups if norm is not None else None) == normed


@pytest.mark.parametrize(("padding", "first"), [(0, 0 + 1 + 2), (1, 0 + 1)])
def test_padding_0_pads_at_the_end_and_padding_1_on_both_sides(padding: int, first: int) -> None:
    """Rows 0, 1, 2, 3 hold 0, 1, 2, 3; a kernel that sums the middle column sees rows 0…2, or −1…1."""
    down = Downsample(1, padding)
    down.conv.weight.data = torch.tensor([[[[0.0, 1.0, 0.0]] * 3]])
    assert down.conv.bias is not None
    down.conv.bias.data.zero_()
    rows = torch.arange(4.0).view(1, 1, 4, 1).expand(-1, -1, -1, 4)
    out = down(rows, torch.empty(0))
    assert out.shape == (1, 1, 2, 2)
    assert out[0, 0, 0, 0].item() == first
    assert out[0, 0, 1, 0].item() == (2 + 3 + 0 if padding == 0 else 1 + 2 + 3)


def test_the_epsilon_of_a_norm_shows_at_low_variance() -> None:
    """Values ±1e-3: 1e-3/√(1e-6 + ε) is 1/√2 with ε = 1e-6 and 1/√11 with 1e-5."""
    x = torch.tensor([1e-3, -1e-3]).repeat(32).view(1, 4, 4, 4)
    for eps, expected in ((1e-6, 1 / math.sqrt(2)), (1e-5, 1 / math.sqrt(11))):
        net = UNet(
            UNetConfig(
                norm_eps=eps,
                block_out_channels=(4,),
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
                norm_num_groups=4,
                add_attention=False,
            )
        )
        for norm in (net.conv_norm_out, net.mid_block.resnets[0].norm1, net.down_blocks[0].resnets[0].norm2):
            assert norm(x).abs().max().item() == pytest.approx(expected, rel=1e-4)


@torch.inference_mode()
def test_inputs_a_hundred_times_too_large_stay_finite_in_bfloat16(
    conditional: UNetConfig, stir: Callable[..., None]
) -> None:
    """mathematics.md, trap 20: float16 ends at 65,504; bfloat16, the one half precision here, is within 1 %."""
    net = UNet(conditional).eval()
    stir(net)
    x = 100 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, labels = torch.tensor([0.0, 10.0, 500.0, 999.0]), torch.tensor([0, 1, 2, 3])
    expected = net(x, t, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x, t, labels)
        far = net(1000 * x, t, labels)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()
    assert far.isfinite().all()


def test_filtered_downsampling_weighs_four_neighbors_by_1_3_3_1() -> None:
    """A single 8 at column 3: y_1 = (x_1 + 3·x_2 + 3·x_3 + x_4)/8 = 3 and y_2 = (x_3 + …)/8 = 1."""
    x = torch.zeros(1, 1, 8, 8)
    x[..., 3] = 8.0
    middle = fir_downsample(x)[0, 0, 1]
    assert middle.tolist() == [0.0, 3.0, 1.0, 0.0]
    assert fir_downsample(torch.ones(1, 1, 8, 8))[0, 0, 1:3, 1:3].eq(1).all()
    assert fir_downsample(torch.ones(1, 1, 8, 8))[0, 0, 0, 0].item() == pytest.approx((7 / 8) ** 2)


def test_filtered_upsampling_weighs_two_neighbors_by_1_and_3() -> None:
    """A single 4 at column 1 of 4: (0, 1, 3, 3, 1, 0, …)."""
    x = torch.zeros(1, 1, 4, 4)
    x[..., 1] = 4.0
    assert fir_upsample(x)[0, 0, 3].tolist() == [0.0, 1.0, 3.0, 3.0, 1.0, 0.0, 0.0, 0.0]
    assert fir_upsample(torch.ones(1, 1, 4, 6)).shape == (1, 1, 8, 12)
