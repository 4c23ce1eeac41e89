"""The U-Net in compiled kernels: the same function, and the same bits in any batch."""

from __future__ import annotations

import ctypes
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.backends.native import compiler, kernel_abi
from denoised.model.backends.native.embedding_cache import EmbeddingCache
from denoised.model.backends.native.kernel_abi import IoBinding
from denoised.model.backends.native.kernels import Kernels
from denoised.model.backends.native.layers import NativeUpsample, subpixel_weights
from denoised.model.backends.native.network import NativeUNet
from denoised.model.backends.native.tiles import MAX_PIXELS, Tile, packed_weight, tile_for
from denoised.model.errors import KernelError
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.networks.unet.unet_layers import Upsample
from denoised.model.serving.loading import ZOO, load_model
from tests.model.networks.unet.configs import ATTENTION, NCSNPP, RESNETS
from tests.requirements import needs_compiler
from tests.rounding import assert_rounded, in_float64, terms_of

ODD = replace(ATTENTION, block_out_channels=(8, 24), attention_head_dim=4, norm_num_groups=4)
UNEVEN = replace(ATTENTION, downsample_padding=0, act_fn="mish", center_input_sample=True)
CONFIGS = {"attention": ATTENTION, "scale and shift": RESNETS, "ncsnpp": NCSNPP, "odd channels": ODD, "uneven": UNEVEN}
EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@cache
def network(config: UNetConfig) -> tuple[UNet, NativeUNet]:
    torch.manual_seed(0)
    unet = UNet(config).eval().requires_grad_(False)
    return unet, NativeUNet(unet, (3, 16, 16))


def inputs(count: int, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, height, width, generator=generator)
    return x, 1 + torch.rand(count, generator=generator) * 998, torch.arange(count) % 3


@needs_compiler
@EVERY
@torch.inference_mode()
def test_it_is_the_same_function(config: UNetConfig) -> None:
    unet, native = network(config)
    x, t, label = inputs(5)
    expected = in_float64(unet)(x.double(), t, label)
    for _ in range(2):  # the second time from its recorded graph, if it has one
        assert_rounded(native(x, t, label), expected, terms=terms_of(unet))


@needs_compiler
@EVERY
@torch.inference_mode()
def test_an_image_has_the_same_bits_in_any_batch_place_and_number_of_threads(config: UNetConfig) -> None:
    _, native = network(config)
    x, t, label = inputs(16)
    alone = torch.cat([native(x[k : k + 1], t[k : k + 1], label[k : k + 1]) for k in range(16)])
    before = torch.get_num_threads()
    order = torch.randperm(16)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for size in (1, 2, 3, 5, 8, 16):
                members = order[:size]
                assert torch.equal(native(x[members], t[members], label[members]), alone[members]), (threads, size)
    finally:
        torch.set_num_threads(before)


@needs_compiler
@torch.inference_mode()
@pytest.mark.parametrize("sides", [(16, 20), (18, 16), (30, 32)])
def test_images_larger_than_it_was_compiled_for_are_right_too(sides: tuple[int, int]) -> None:
    unet, native = network(ATTENTION)
    x, t, label = inputs(3, *sides)
    native(*inputs(3))
    expected = in_float64(unet)(x.double(), t, label)
    for _ in range(2):
        assert_rounded(native(x, t, label), expected, terms=terms_of(unet))


@needs_compiler
@torch.inference_mode()
@pytest.mark.parametrize("name", ["fashion-mnist", "digits"])
def test_the_bundled_models_run_from_a_recorded_graph_alone(name: str) -> None:
    model = load_model(ZOO / name)
    native = NativeUNet(model.unet, model.shape)
    x, t, label = torch.randn(3, *model.shape), torch.tensor([3.0, 500.5, 998.0]), torch.tensor([0, 5, 10])
    assert isinstance(model.unet, UNet)
    expected, terms = in_float64(model.unet)(x.double(), t, label), terms_of(model.unet)
    assert_rounded(native(x, t, label), expected, terms=terms)
    native._unet.evaluate = None  # type: ignore[assignment, method-assign]
    assert_rounded(native(x, t, label), expected, terms=terms)


@needs_compiler
@torch.inference_mode()
def test_a_network_that_does_more_than_call_kernels_is_not_recorded() -> None:
    unet, native = network(NCSNPP)
    native(*inputs(2))
    assert native._graph is None
    for k in range(3):
        x, t, label = inputs(2)
        assert_rounded(native(x + k, t, label), in_float64(unet)((x + k).double(), t, label), terms=terms_of(unet))


@needs_compiler
@EVERY
@torch.inference_mode()
def test_concurrent_evaluations_have_the_bits_of_sequential_ones(config: UNetConfig) -> None:
    """In whatever order they are waited for, with one in between that runs at once, and one that nobody waits for."""
    _, native = network(config)
    x, t, label = inputs(16)
    expected = native(x, t, label)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results = [native.begin(x[k : k + 4], t[k : k + 4], label[k : k + 4]) for k in range(0, 16, 4)]
            native.begin(x, t, label)
            assert torch.equal(native(x[:5], t[:5], label[:5]), expected[:5])
            found = {k: results[k]() for k in (2, 0, 3, 1)}
            assert torch.equal(torch.cat([found[k] for k in range(4)]), expected), threads
            assert torch.equal(results[0](), expected[:4]), "a second wait returns the same"
    finally:
        torch.set_num_threads(before)


@needs_compiler
@torch.inference_mode()
def test_two_networks_can_evaluate_at_once() -> None:
    (_, one), (_, other) = network(ATTENTION), network(RESNETS)
    x, t, label = inputs(6)
    expected = [native(x, t, label) for native in (one, other)]
    results = [native.begin(x, t, label) for native in (one, other, one, other)]
    for result, is_expected in zip(results, expected * 2, strict=True):
        assert torch.equal(result(), is_expected)


@needs_compiler
@torch.inference_mode()
def test_the_caller_goes_on_while_an_evaluation_is_in_flight() -> None:
    """A pipelined evaluation takes next to no time of the caller's thread; one that runs at once takes all of it."""
    _, native = network(ATTENTION)
    x, t, label = inputs(64)
    native(x, t, label)

    def seconds(evaluate: Callable[[], object]) -> float:
        started = time.thread_time()
        evaluate()
        return time.thread_time() - started

    own = min(seconds(lambda: native(x, t, label)) for _ in range(5))
    pipelined = min(seconds(native.begin(x, t, label)) for _ in range(5))
    assert pipelined < own / 2


@needs_compiler
@torch.inference_mode()
def test_a_network_is_pipelined_for_enough_images_to_keep_all_threads_busy_and_only_if_it_is_recorded() -> None:
    _, native = network(ATTENTION)
    native(*inputs(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert native.min_pipelined_images == 8
        torch.set_num_threads(6)
        assert native.min_pipelined_images == 12
    finally:
        torch.set_num_threads(before)
    _, other = network(NCSNPP)
    other(*inputs(1))
    assert other.min_pipelined_images is None


@needs_compiler
@torch.inference_mode()
def test_layers_find_their_weights_by_name_in_whatever_order_modules_are_registered() -> None:
    torch.manual_seed(0)
    unet = UNet(RESNETS).eval().requires_grad_(False)
    _, expected = network(RESNETS)
    for parts in (unet._modules, unet.down_blocks[0]._modules, unet.up_blocks[0]._modules):
        for name in sorted(parts, reverse=True):
            parts[name] = parts.pop(name)
    assert next(name for name, _ in unet.named_children()) == "up_blocks"
    x, t, label = inputs(3)
    assert torch.equal(NativeUNet(unet, (3, 16, 16))(x, t, label), expected(x, t, label))


@needs_compiler
@torch.inference_mode()
def test_nan_stays_in_the_image_that_it_came_from() -> None:
    _, native = network(ATTENTION)
    x, t, label = inputs(4)
    sound = native(x, t, label)
    x[2, 0, 3, 3] = torch.nan
    broken = native(x, t, label)
    assert torch.isnan(broken[2]).any()
    others = [0, 1, 3]
    assert torch.equal(broken[others], sound[others])


TILES = [
    Tile(size, stride, channels, pixels, vectors)
    for size, stride in ((1, 1), (2, 1), (3, 1), (3, 2))
    for channels in (1, 3, 16)
    for pixels, vectors in ((1, 1), (3, 2), (14, 2), (7, 4), (5, 3))
]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    made = Kernels()
    made._tiles = set(TILES)
    made.compile()
    return made


@needs_compiler
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name.removeprefix("denoised_convolve_"))
def test_every_tile_computes_the_convolution_and_no_bit_depends_on_it(tile: Tile, kernels: Kernels) -> None:
    torch.manual_seed(3)
    out_channels, width = 16 * tile.vectors, tile.stride * (tile.pixels + 2) + tile.size
    x = torch.randn(2, 9, width, tile.channels).permute(0, 3, 1, 2)
    weight, bias = torch.randn(out_channels, tile.channels, tile.size, tile.size), torch.randn(out_channels)
    y = kernels.convolve(tile, x, packed_weight(weight, tile), bias, None)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride=tile.stride)
    sizes = F.conv2d(x.abs(), weight.abs(), bias.abs(), stride=tile.stride)  # the sum of the terms' sizes
    assert_rounded(y, expected, terms=weight[0].numel() + 1, size=sizes.max())
    addend = torch.randn(y.shape).contiguous(memory_format=torch.channels_last)
    assert torch.equal(kernels.convolve(tile, x, packed_weight(weight, tile), bias, addend), y + addend)
    smallest = Tile(tile.size, tile.stride, tile.channels, 1, 1)
    assert torch.equal(kernels.convolve(smallest, x, packed_weight(weight, smallest), bias, None), y)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 14, 15, 28, 31, 64])
@pytest.mark.parametrize("out_channels", [16, 48, 64, 512])
def test_a_tile_fits_the_convolution_that_it_is_chosen_for(width: int, out_channels: int) -> None:
    tile = tile_for(3, 1, 32, out_channels, width)
    assert 1 <= tile.pixels <= min(width, MAX_PIXELS)
    assert out_channels % (16 * tile.vectors) == 0


@needs_compiler
def test_norm_is_torchs_with_a_projection_of_the_embedding_and_a_border(kernels: Kernels) -> None:
    torch.manual_seed(4)
    x = torch.randn(3, 48, 5, 13).contiguous(memory_format=torch.channels_last) * 3 + 50
    weight, bias, projection = torch.randn(48), torch.randn(48), torch.randn(3, 96)
    addend, scale, shift = projection[:, :48], projection[:, :48], projection[:, 48:]
    added = F.silu(F.group_norm(x.double() + addend[:, :, None, None], 3, weight.double(), bias.double(), 1e-5))
    y = kernels.norm(x, weight, bias, 3, 1e-5, silu=True, border=1, addend=addend)
    # Each of 16 lanes sums 65 of a group's numbers of size 50 to its mean; then they are divided by the deviation, 3.
    terms, size = 65, (x.abs().max() / 3 + 1) * weight.abs().max()
    assert_rounded(y, F.pad(added, (1, 1, 1, 1)), terms=terms, size=size)
    normed = F.group_norm(x.double(), 3, weight.double(), bias.double(), 1e-5)
    scaled = normed * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    y = kernels.norm(x, weight, bias, 3, 1e-5, silu=False, border=0, scale=scale, shift=shift)
    assert_rounded(y, scaled, terms=terms, size=size * (1 + scale.abs().max()))


@needs_compiler
@pytest.mark.parametrize(
    ("height", "width", "heads", "depth"), [(7, 7, 4, 32), (1, 1, 1, 16), (3, 5, 2, 48), (8, 8, 1, 16)]
)
def test_attention_is_softmax_of_products_over_values(
    height: int, width: int, heads: int, depth: int, kernels: Kernels
) -> None:
    torch.manual_seed(5)
    qkv = torch.randn(3, height, width, 3 * heads * depth).permute(0, 3, 1, 2) * 2
    q, k, v = qkv.flatten(2).transpose(1, 2).unflatten(2, (3, heads, depth)).permute(2, 0, 3, 1, 4).double()
    weights = torch.softmax(q @ k.transpose(2, 3) / depth**0.5, dim=3)
    expected = (weights @ v).transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (height, width))
    # An error of a logit is the relative error of its weight; the weights of a row sum to 1.
    logits = (q.abs() @ k.abs().transpose(2, 3)).max() / depth**0.5
    assert_rounded(kernels.attend(qkv, heads), expected, terms=depth, size=(1 + logits) * v.abs().max())


@needs_compiler
def test_the_four_phases_are_the_convolution_of_the_doubled_image(kernels: Kernels) -> None:
    torch.manual_seed(6)
    upsample = Upsample(16).requires_grad_(False)
    x = torch.randn(2, 16, 5, 6)
    grid = F.conv2d(x, subpixel_weights(upsample), upsample.conv.bias.repeat(4), padding=1)  # type: ignore[union-attr]
    doubled = NativeUpsample(kernels, lambda _: grid.contiguous(memory_format=torch.channels_last))  # type: ignore[arg-type]
    expected = in_float64(upsample)(x.double(), x.double())
    assert_rounded(doubled(x, x), expected, terms=terms_of(upsample))


def test_projections_are_computed_once_for_a_time_and_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, ...]] = []

    def embed(t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        assert label is not None
        asked.extend(zip(t.tolist(), label.tolist(), strict=True))
        return torch.stack([t, label.float()], dim=1)

    monkeypatch.setattr("denoised.model.backends.native.embedding_cache.MAX_ENTRIES", 4)
    cached = EmbeddingCache(embed, nn.Identity(), 2)
    t, label = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([0, 0, 0])
    expected = torch.tensor([[1.0, 0], [2, 0], [1, 0]])
    assert torch.equal(cached(t, label), expected)
    assert torch.equal(cached(t, label), expected)
    assert asked == [(1.0, 0), (2.0, 0)]
    for first in range(3, 30, 2):  # more than its four entries
        t = torch.tensor([1.0, first, first + 1])
        assert torch.equal(cached(t, label), torch.stack([t, label.float()], dim=1))
    t, label = torch.arange(7.0), torch.arange(7)
    assert torch.equal(cached(t, label), torch.stack([t, t], dim=1))


@needs_compiler
@torch.inference_mode()
def test_kernels_are_compiled_once_and_cached_where_no_other_user_may_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unet, native = network(ATTENTION)
    count = tmp_path / "count"
    wrapper = tmp_path / "cc"
    wrapper.write_text(
        f'#!/bin/sh\necho "$@" >> {count}\nexec {shlex.join(next(compiler.compilers()))} "$@"\n', encoding="utf-8"
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", str(wrapper))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for times in (1, 2):
        again = NativeUNet(unet, (3, 16, 16))
        assert torch.equal(again(*inputs(2)), native(*inputs(2)))
        assert count.read_text().count("-shared") == 1, times
    assert (tmp_path / "denoised").stat().st_mode & 0o777 == 0o700
    (tmp_path / "denoised").chmod(0o777)  # others may have put anything there
    NativeUNet(unet, (3, 16, 16))
    assert count.read_text().count("-shared") == 2


def test_without_a_compiler_the_error_gives_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = UNet(ATTENTION).eval()
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    with pytest.raises(KernelError, match="there is no C compiler here"):
        NativeUNet(unet, (3, 16, 16))
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cc: out of order' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(KernelError, match="made no kernels: cc: out of order"):
        NativeUNet(unet, (3, 16, 16))


@needs_compiler
def test_the_kernels_compile_without_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "FLAGS", [*compiler.FLAGS, "-Werror"])
    compiler.compiled([tile_for(3, 1, 32, 64, 28).source, tile_for(1, 1, 3, 16, 1).source])
    assert list((tmp_path / "denoised").glob("kernels-*.so"))


@needs_compiler
def test_a_structure_of_another_size_than_in_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Larger(IoBinding):
        _fields_ = (("padding", ctypes.c_long),)

    structures = [Larger if each is IoBinding else each for each in kernel_abi.STRUCTURES]
    monkeypatch.setattr(kernel_abi, "STRUCTURES", structures)
    with pytest.raises(KernelError, match="do not fit: Larger has 32 bytes here and 24 in the library"):
        Kernels().compile()
