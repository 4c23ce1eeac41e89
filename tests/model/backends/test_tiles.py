"""The graphs of tiles with CUDA's graphs replaced on the CPU: replays, bits, the rule, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoised.model.backends import graphs, selection
from denoised.model.backends.comparison import ReferenceRows
from denoised.model.backends.graphs import GraphedUNet
from denoised.model.backends.tile_size import (
    REPLAY_TILES,
    TILE_BYTES,
    TILE_FLOP,
    TILE_ROWS,
    RowCost,
    Tiling,
    row_cost,
    tiling,
)
from denoised.model.backends.tiled_graphs import TiledGraphs
from denoised.model.errors import KernelError
from denoised.model.networks.unet.score_network import ScoreUNet
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.loading import ZOO, load_model
from tests.fake_cuda_graphs import FakeDevice, FakeGraph, install
from tests.model.networks.unet.configs import ATTENTION, NCSNPP, RESNETS

SHAPE = (3, 8, 8)
LEARNED = replace(ATTENTION, time_embedding_type="learned", num_train_timesteps=50)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    return install(monkeypatch)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "tiling", lambda cost: Tiling(2, 2))


def network(config: UNetConfig = ATTENTION) -> UNet:
    torch.manual_seed(0)
    return UNet(config).eval().requires_grad_(False)


def inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *SHAPE, generator=generator)
    return x, 1 + torch.rand(count, generator=generator) * 998, 1 + torch.arange(count) % 3


@pytest.mark.parametrize("config", [ATTENTION, RESNETS, NCSNPP], ids=["attention", "scale and shift", "ncsnpp"])
def test_a_batch_is_one_replay_of_as_many_tiles_as_it_fills(config: UNetConfig, device: FakeDevice) -> None:
    unet = network(config)
    graphed = GraphedUNet(unet, SHAPE, 1000, tiles=Tiling(rows=2, tiles=3))
    assert [len(graph.streams) for graph in device.graphs] == [3, 2, 1], "the largest is recorded first"
    x, t, label = inputs(13)
    # Tiles of each replay, for a number of images.
    for count, tiles in {1: [1], 2: [1], 3: [2], 4: [2], 5: [3], 6: [3], 7: [3, 1], 13: [3, 3, 1]}.items():
        before = [graph.replays for graph in device.graphs]
        found = graphed(x[:count], t[:count], label[:count])
        replays = [graph.replays - earlier for graph, earlier in zip(device.graphs, before, strict=True)]
        assert replays == [tiles.count(3), tiles.count(2), tiles.count(1)], count
        torch.testing.assert_close(found, unet(x[:count], t[:count], label[:count]), atol=1e-4, rtol=1e-4)


def test_all_graphs_share_one_pool_of_memory(device: FakeDevice) -> None:
    GraphedUNet(network(), SHAPE, 1000, tiles=Tiling(rows=1, tiles=2))
    assert {graph.pool for graph in device.graphs} == {(0, 1)}


@pytest.mark.parametrize("tiles", [Tiling(1, 1), Tiling(1, 4), Tiling(4, 1), Tiling(2, 2)], ids=str)
def test_an_image_has_the_same_bits_in_any_batch_and_place(tiles: Tiling, device: FakeDevice) -> None:
    graphed = GraphedUNet(network(), SHAPE, 1000, tiles=tiles)
    x, t, label = inputs(11)
    alone = torch.cat([graphed(x[k : k + 1], t[k : k + 1], label[k : k + 1]) for k in range(11)])
    for size in (2, 4, 7, 11):
        members = torch.randperm(11)[:size]
        assert torch.equal(graphed(x[members], t[members], label[members]), alone[members]), size


def test_a_network_whose_bits_depend_on_the_place_is_refused(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = network()
    monkeypatch.setattr(unet, "finish", lambda h, level: h + torch.arange(len(h)).view(-1, 1, 1, 1) * 1e-6)
    with pytest.raises(KernelError, match="the bits of an image depend on its neighbors"):
        GraphedUNet(unet, SHAPE, 1000, tiles=Tiling(4, 1))


def test_a_graph_of_two_tiles_that_differs_from_that_of_one_is_refused(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = TiledGraphs._evaluate_tile, []

    def off_in_the_second_tile(graphed: TiledGraphs, rows: slice) -> None:
        evaluate(graphed, rows)
        calls.append(rows)
        graphed._output[rows] += 1e-6 if rows.start else 0.0

    monkeypatch.setattr(TiledGraphs, "_evaluate_tile", off_in_the_second_tile)
    with pytest.raises(KernelError, match="the bits of an image depend on its neighbors"):
        GraphedUNet(network(), SHAPE, 1000, tiles=Tiling(2, 2))
    assert calls


def test_a_stream_that_is_not_joined_is_refused(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The double is as strict as a device, where the recording then fails."""
    origin_waits = type(device.current).wait_stream
    monkeypatch.setattr(
        type(device.current),
        "wait_stream",
        lambda self, other: None if self.waited_for == set() and other.waited_for else origin_waits(self, other),
    )
    with pytest.raises(KernelError, match="unjoined work"):
        GraphedUNet(network(), SHAPE, 1000, tiles=Tiling(2, 2))


@pytest.mark.parametrize("empty", ["all", "two tiles"])
def test_an_empty_graph_is_refused(empty: str, device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output of an empty one never changes. If all are empty, only the comparison with the network shows it."""
    unet = network()
    reference = ReferenceRows.of(unet, SHAPE, 1000)
    is_empty = property(lambda graph: empty == "all" or len(graph.streams) == 2)
    monkeypatch.setattr(FakeGraph, "is_empty", is_empty)
    with pytest.raises(KernelError, match="another function" if empty == "all" else "depend on its neighbors"):
        reference.check(GraphedUNet(unet, SHAPE, 1000, tiles=Tiling(2, 2)), "graphs")


@pytest.mark.usefixtures("small_tiles")
def test_a_learned_time_embedding_is_asked_for_no_row_that_it_lacks(device: FakeDevice) -> None:
    """999 is beyond it. On a GPU, that is an assertion that breaks the device for the whole process."""
    unet = network(LEARNED)
    chosen = selection._for_cuda(unet, SHAPE, 50, "cuda", "float32")
    assert chosen.fallback is None
    x, _, label = inputs(3)
    t = torch.tensor([0.0, 1.0, 49.0])
    torch.testing.assert_close(chosen.backend(x, t, label), unet(x, t, label), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("timesteps", [1, 200])
def test_a_score_network_is_recorded_with_what_is_around_its_layers(timesteps: int, device: FakeDevice) -> None:
    torch.manual_seed(0)
    unet = ScoreUNet(NCSNPP, 0.01, 50.0, timesteps).eval().requires_grad_(False)
    assert selection._for_cuda(unet, SHAPE, timesteps, "cuda", "float32").fallback is None


def test_what_cannot_be_recorded_is_served_image_by_image_in_float32_and_says_why(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: FakeGraph, **options: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    chosen = selection._for_cuda(network(), SHAPE, 1000, "cuda", "bfloat16")
    assert chosen.fallback is not None
    assert chosen.fallback.endswith(
        "(operation not permitted when stream is capturing); it is served in float32, image by image"
    )
    assert chosen.numerics.startswith("per-image/")
    assert chosen.numerics.endswith("/float32")
    x, t, label = inputs(3)
    alone = torch.cat([chosen.backend(x[k : k + 1], t[k : k + 1], label[k : k + 1]) for k in range(3)])
    assert torch.equal(chosen.backend(x, t, label), alone)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_numerics_name_the_tile_and_the_precision(precision: str, device: FakeDevice) -> None:
    chosen = selection._for_cuda(network(), SHAPE, 1000, "cuda", precision)  # type: ignore[arg-type]
    assert chosen.numerics.startswith("graphs-2/torch-")
    assert chosen.numerics.endswith(f"/NVIDIA-H100/{precision}")


def test_tiles_have_a_limit_of_images_arithmetic_and_memory() -> None:
    assert tiling(RowCost(1.0, 1.0)) == Tiling(TILE_ROWS, REPLAY_TILES) == Tiling(16, 4)
    assert tiling(RowCost(TILE_FLOP / 16, 1.0)) == Tiling(16, 4)
    assert tiling(RowCost(TILE_FLOP / 15, 1.0)) == Tiling(8, 4)
    assert tiling(RowCost(1.0, TILE_BYTES / 3)) == Tiling(2, 4)


def test_a_replay_of_images_that_are_larger_than_a_tile_has_four_times_its_limits() -> None:
    assert tiling(RowCost(2 * TILE_FLOP, 1.0)) == Tiling(1, 2)
    assert tiling(RowCost(1.0, 4 * TILE_BYTES)) == Tiling(1, 1)
    assert tiling(RowCost(8e11, 4e9)) == Tiling(1, 1), "the U-Net of Stable Diffusion 1.5 at 512²"
    assert tiling(RowCost(1e15, 1e12)) == Tiling(1, 1)


def test_the_cost_of_an_image_is_counted_from_the_layers() -> None:
    small, large = row_cost(network(), SHAPE), row_cost(network(), (3, 16, 16))
    assert 3.5 * small.map_bytes < large.map_bytes < 4 * small.map_bytes, "all but the layers of t"
    assert 3 * small.flop < large.flop < 4 * small.flop
    # The first convolution, 3 → 16 channels of 3×3, and its output of 8×8 pixels.
    assert small.flop > 2 * (3 * 16 * 9) * 8**2
    assert small.map_bytes > 4 * 16 * 8**2


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_the_bundled_models_have_tiles_of_sixteen(name: str) -> None:
    model = load_model(ZOO / name)
    assert isinstance(model.unet, UNet)
    assert tiling(row_cost(model.unet, model.shape)) == Tiling(16, 4)
