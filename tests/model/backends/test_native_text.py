"""The text-conditioned U-Net in compiled kernels: the same function, and the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from denoised.model.backends.native.kernels import Kernels
from denoised.model.backends.native.transformers.row_cache import RowCache
from denoised.model.backends.native.transformers.text_network import NativeTextUNet, fits
from denoised.model.backends.native.transformers.transformer_kernels import gated_gelu, layer_norm
from denoised.model.backends.text_selection import select_text_backend
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.training.text_to_image.text_presets import TEXT_PRESETS, text_unet_config
from tests.requirements import needs_compiler
from tests.rounding import assert_rounded, in_float64, terms_of

SHAPE = (4, 16, 16)
# Like the emoji's U-Net: text at the lower two of three resolutions.
PLAIN = TextUNetConfig(
    sample_size=16,
    block_out_channels=(16, 32, 48),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=(1, 2, 3),
    cross_attention_dim=24,
)
# Linear projections, several layers, the first attention to the text too, SDXL's added vector, LCM's guidance scale.
VARIED = replace(
    PLAIN,
    use_linear_projection=True,
    transformer_layers_per_block=(1, 2, 1),
    only_cross_attention=(False, True, False),
    mid_block_type="UNetMidBlock2D",
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=60,
    time_cond_proj_dim=20,
    center_input_sample=True,
)
CONFIGS = {"plain": PLAIN, "varied": VARIED}
EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
Stir = Callable[..., None]


@pytest.fixture(autouse=True)
def same_threads_afterward() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@cache
def network(config: TextUNetConfig) -> tuple[TextUNet, NativeTextUNet]:
    torch.manual_seed(0)
    unet = TextUNet(config).eval().requires_grad_(False)
    return unet, NativeTextUNet(unet, SHAPE)


def inputs(
    config: TextUNetConfig, count: int, height: int = 16, width: int = 16, tokens: int = 11
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    added = {
        "pooled": torch.randn(count, max(0, config.pooled_dim), generator=generator),
        "size_ids": torch.randint(0, 1024, (count, 6), generator=generator).float(),
        "guidance": torch.linspace(1, 8, count),
    }
    return {
        "x": torch.randn(count, 4, height, width, generator=generator),
        "t": 1 + torch.rand(count, generator=generator) * 998,
        "context": torch.randn(count, tokens, 24, generator=generator),
        **{name: added[name] for name in config.added_inputs},
    }


def rows_of(given: dict[str, Tensor], index: slice | Tensor) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in given.items()}


def doubled(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in given.items()}


@needs_compiler
@EVERY
@torch.inference_mode()
@pytest.mark.parametrize(
    ("height", "width", "tokens"), [(16, 16, 11), (16, 16, 16), (16, 16, 77), (4, 4, 1), (8, 20, 33), (24, 12, 11)]
)
def test_it_is_the_same_function(config: TextUNetConfig, height: int, width: int, tokens: int) -> None:
    unet, native = network(config)
    given = inputs(config, 5, height, width, tokens)
    expected = in_float64(unet)(**doubled(given))
    for _ in range(2):  # the second time from its recorded graph, if it has one
        assert_rounded(native(**given), expected, terms=terms_of(unet))


@needs_compiler
@torch.inference_mode()
@pytest.mark.parametrize(
    ("config", "height", "width"),
    [
        pytest.param(config, side, side, id=f"{name}-{side}", marks=() if (k + side // 8) % 2 else pytest.mark.slow)
        for k, (name, config) in enumerate(CONFIGS.items())
        for side in (8, 16)
    ],
)
def test_an_image_has_the_same_bits_in_any_batch_place_and_number_of_threads(
    config: TextUNetConfig, height: int, width: int
) -> None:
    _, native = network(config)
    given = inputs(config, 16, height, width)
    alone = torch.cat([native(**rows_of(given, slice(k, k + 1))) for k in range(16)])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for size in (1, 2, 5, 16):
            members = order[:size]
            assert torch.equal(native(**rows_of(given, members)), alone[members]), (threads, size)
            assert torch.equal(native.begin(**rows_of(given, members))(), alone[members]), (threads, size)


@needs_compiler
@torch.inference_mode()
def test_evaluations_in_flight_do_not_disturb_each_other() -> None:
    _, native = network(PLAIN)
    given = inputs(PLAIN, 16)
    expected = native(**given)
    torch.set_num_threads(2)
    results = [native.begin(**rows_of(given, slice(k, k + 4))) for k in range(0, 16, 4)]
    native.begin(**given)
    assert torch.equal(native(**rows_of(given, slice(5))), expected[:5])
    found = {k: results[k]() for k in (2, 0, 3, 1)}
    assert torch.equal(torch.cat([found[k] for k in range(4)]), expected)


@needs_compiler
@torch.inference_mode()
def test_the_emojis_network_runs_from_recorded_graphs_alone(stir: Stir) -> None:
    unet = TextUNet(text_unet_config(TEXT_PRESETS["small"], 16)).eval().requires_grad_(False)
    stir(unet)
    native = NativeTextUNet(unet, SHAPE)
    given = {**inputs(PLAIN, 3), "context": torch.randn(3, 22, 128)}
    expected, terms = in_float64(unet)(**doubled(given)), terms_of(unet)
    assert_rounded(native(**given), expected, terms=terms)
    native._unet.evaluate = None  # type: ignore[assignment, method-assign]
    assert_rounded(native(**given), expected, terms=terms)
    assert native.min_pipelined_images is not None


@needs_compiler
@torch.inference_mode()
def test_many_sizes_and_lengths_replace_each_others_graphs() -> None:
    unet, native = network(PLAIN)
    for tokens in range(1, 14):
        given = inputs(PLAIN, 2, 16, 16, tokens)
        assert_rounded(native(**given), in_float64(unet)(**doubled(given)), terms=terms_of(unet))
    assert len(native._graphs) <= 8


@needs_compiler
def test_a_fitting_network_is_served_by_the_kernels(stir: Stir) -> None:
    unet = TextUNet(PLAIN).eval().requires_grad_(False)
    stir(unet)
    given = inputs(PLAIN, 3)
    with torch.inference_mode():
        expected = unet(**given)
        selection = select_text_backend(unet, 1000, "cpu")
        torch.testing.assert_close(selection.backend(**given), expected, rtol=0, atol=1e-4)
    assert selection.numerics.startswith("native/")
    assert selection.fallback is None
    assert next(unet.parameters()).device.type == "meta"


@needs_compiler
def test_rows_with_adapters_have_a_network_of_their_own_beside_the_kernels() -> None:
    unet = TextUNet(PLAIN).eval().requires_grad_(False)
    given = inputs(PLAIN, 3)
    with torch.inference_mode():
        expected = unet(**given)
        selection = select_text_backend(unet, 1000, "cpu", adapted=True)
        for backend in (selection.backend, selection.adaptable):
            torch.testing.assert_close(backend(**given), expected, rtol=0, atol=1e-4)
    assert selection.numerics.startswith("native/")
    assert selection.packed


@pytest.mark.parametrize(
    ("change", "side"),
    [
        ({"attention_head_dim": 4}, 16),  # heads of 8 and 12 channels
        ({"block_out_channels": (8, 32, 48), "norm_num_groups": 4}, 16),
        ({}, 128),  # 64·64 pixels attend to each other
    ],
)
def test_networks_that_the_kernels_do_not_fit_are_left_to_others(change: dict[str, object], side: int) -> None:
    unet = TextUNet(replace(PLAIN, **change))  # type: ignore[arg-type]
    assert fits(TextUNet(PLAIN), SHAPE)
    assert not fits(unet, (4, side, side))


@needs_compiler
def test_layer_norm_and_gate_are_right_far_from_zero_too() -> None:
    kernels = Kernels()
    kernels.compile()
    x = torch.cat([torch.linspace(-40, 40, 64 * 32).view(1, 64, 4, 8), 1e4 + torch.randn(1, 64, 4, 8)])
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(64), torch.randn(64)
    normed = layer_norm(kernels, x, weight, bias, 1e-5)
    expected = F.layer_norm(x.permute(0, 2, 3, 1).double(), (64,), weight.double(), bias.double(), 1e-5)
    # The second image's norm subtracts a mean of 1e4, which is known to 1e4·2⁻²⁴.
    torch.testing.assert_close(normed[:1].permute(0, 2, 3, 1).double(), expected[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(normed[1:].permute(0, 2, 3, 1).double(), expected[1:], rtol=0, atol=1e-2)
    gated = gated_gelu(kernels, x[:1])
    value, gate = x[:1].double().chunk(2, dim=1)
    torch.testing.assert_close(gated.double(), value * F.gelu(gate), rtol=5e-6, atol=1e-5)


def test_a_row_cache_computes_each_row_once_and_by_itself() -> None:
    computed: list[float] = []

    def compute(x: Tensor, y: Tensor) -> Tensor:
        assert len(x) == 1
        computed.append(x.item())
        return torch.stack([x, 2 * x, y.sum(dim=1)], dim=1)

    cached = RowCache(compute)
    x, y = torch.tensor([1.0, 2.0, 1.0]), torch.ones(3, 5)
    for _ in range(2):
        assert torch.equal(cached(x, y), torch.tensor([[1.0, 2, 5], [2, 4, 5], [1, 2, 5]]))
    assert computed == [1.0, 2.0]


def test_a_full_row_cache_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoised.model.backends.native.transformers.row_cache.MAX_ENTRIES", 3)
    cached = RowCache(lambda x: torch.stack([x, -x], dim=1))
    for batch in ([1.0, 2], [3.0], [4.0, 1], [5.0, 6, 7, 8, 9, 5], [1.0, 9]):
        x = torch.tensor(batch)
        assert torch.equal(cached(x), torch.stack([x, -x], dim=1))
