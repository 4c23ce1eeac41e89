"""Graphs of a text-conditioned U-Net with CUDA's replaced on the CPU: shapes, bits, precision, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoised.model.backends import text_graphs, tiled_graphs
from denoised.model.backends.text_backend import PerImageTextUNet
from denoised.model.backends.text_graphs import GraphedTextUNet
from denoised.model.backends.text_selection import select_text_backend
from denoised.model.backends.tile_size import Tiling, text_row_cost, tiling
from denoised.model.errors import KernelError
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.serving.loading import ZOO, load_text_model
from tests.fake_cuda_graphs import FakeDevice, FakeGraph, install
from tests.model.networks.text_unet.text_unet_configs import TWO_LEVEL_UNET

CONFIG = replace(TWO_LEVEL_UNET, sample_size=8)
ADDED = replace(
    CONFIG,
    addition_embed_type="text_time",
    addition_time_embed_dim=32,  # whole vectors of a processor: a CPU rounds sines differently where a vector ends
    projection_class_embeddings_input_dim=6 * 32 + 32,
    time_cond_proj_dim=32,
)
Stir = Callable[..., None]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    monkeypatch.setattr(tiled_graphs, "ORDERS", 1)
    return install(monkeypatch)


@pytest.fixture
def unet_of(stir: Stir) -> Callable[..., TextUNet]:
    def build(config: TextUNetConfig = CONFIG) -> TextUNet:
        network = TextUNet(config).eval().requires_grad_(False)
        stir(network)
        return network

    return build


def inputs(count: int, config: TextUNetConfig = CONFIG, side: int = 8, tokens: int = 77) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = {
        "x": torch.randn(count, 4, side, side, generator=generator),
        "t": torch.linspace(3, 990, count),
        "context": torch.randn(count, tokens, 24, generator=generator),
        "pooled": torch.randn(count, 32, generator=generator),
        "size_ids": torch.full((count, 6), 64.0),
        "guidance": torch.linspace(1, 8, count),
    }
    return {name: drawn[name] for name in ("x", "t", "context", *config.added_inputs)}


def rows(given: dict[str, Tensor], own: slice | Tensor) -> dict[str, Tensor]:
    return {name: tensor[own] for name, tensor in given.items()}


@pytest.mark.parametrize("config", [CONFIG, ADDED], ids=["plain", "text_time and guidance"])
@pytest.mark.parametrize("tiles", [Tiling(1, 1), Tiling(2, 2)], ids=str)
def test_it_is_the_network_and_an_image_has_the_same_bits_in_any_batch(
    tiles: Tiling, config: TextUNetConfig, device: FakeDevice, unet_of: Callable[..., TextUNet]
) -> None:
    unet, given = unet_of(config), inputs(7, config)
    graphed = GraphedTextUNet(unet, rows(given, slice(1)), 1000, tiles=tiles)
    alone = torch.cat([graphed(**rows(given, slice(k, k + 1))) for k in range(7)])
    torch.testing.assert_close(alone, unet(**given), atol=1e-4, rtol=1e-4)
    for size in (2, 3, 5, 7):
        own = torch.randperm(7)[:size]
        assert torch.equal(graphed(**rows(given, own)), alone[own]), size
    assert torch.equal(graphed.begin(**given)(), alone)


def test_every_shape_of_latents_and_text_has_its_own_graphs(
    device: FakeDevice, unet_of: Callable[..., TextUNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_graphs, "MAX_SHAPES", 2)
    unet = unet_of()
    graphed = GraphedTextUNet(unet, inputs(1), 1000, tiles=Tiling(2, 1))
    assert len(device.graphs) == 1
    with torch.inference_mode():  # as in the running batch
        for side, tokens, recorded in ((8, 154, 2), (4, 77, 3), (8, 154, 3), (8, 77, 4)):
            given = inputs(3, side=side, tokens=tokens)
            torch.testing.assert_close(graphed(**given), unet(**given), atol=1e-4, rtol=1e-4)
            assert len(device.graphs) == recorded, "the shape used longest ago was dropped"
    assert {graph.pool for graph in device.graphs} == {(0, 1)}
    outside = graphed(**inputs(3))
    assert torch.equal(outside, graphed(**inputs(3))), "what was recorded in inference mode is used outside it"


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_a_cuda_device_gets_graphs_in_every_precision(
    precision: str, device: FakeDevice, unet_of: Callable[..., TextUNet]
) -> None:
    unet, given = unet_of(), inputs(5)
    expected = unet(**given)
    chosen = select_text_backend(unet, 1000, "cuda", precision=precision)  # type: ignore[arg-type]
    assert isinstance(chosen.backend, GraphedTextUNet)
    assert (chosen.fallback, chosen.refused, chosen.precision) == (None, None, precision)
    assert chosen.numerics.startswith("graphs-16/torch-")
    assert chosen.numerics.endswith(f"/{precision}")
    with torch.inference_mode():
        found = chosen.backend(**given)
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < {"bfloat16": 0.1, "float16": 0.01}.get(
            precision, 1e-4
        )
        assert isinstance(chosen.adaptable, PerImageTextUNet)
        assert torch.allclose(chosen.adaptable(**given), found, atol=1e-2 if "16" in precision else 1e-4)


def test_what_cannot_be_recorded_is_served_image_by_image_and_says_why(
    device: FakeDevice, unet_of: Callable[..., TextUNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: FakeGraph, **options: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    chosen = select_text_backend(unet_of(), 1000, "cuda", precision="bfloat16")
    assert isinstance(chosen.backend, PerImageTextUNet)
    assert chosen.fallback is not None
    assert chosen.fallback.endswith("(operation not permitted when stream is capturing); it is served image by image")
    assert (chosen.numerics.split("/")[0], chosen.precision) == ("per-image", "bfloat16")


@pytest.mark.parametrize("kind", ["empty", "place"])
def test_wrong_graphs_are_not_used(
    kind: str, device: FakeDevice, unet_of: Callable[..., TextUNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one computes another function; in the other, an image's bits depend on its place."""
    evaluate = GraphedTextUNet._evaluate
    if kind == "empty":
        monkeypatch.setattr(FakeGraph, "is_empty", True)
    else:
        monkeypatch.setattr(
            GraphedTextUNet,
            "_evaluate",
            lambda self, given: evaluate(self, given) + torch.arange(len(given["t"])).view(-1, 1, 1, 1) * 1e-6,
        )
    chosen = select_text_backend(unet_of(), 1000, "cuda")
    assert chosen.fallback is not None
    assert ("another function" if kind == "empty" else "depend on its neighbors") in chosen.fallback
    assert isinstance(chosen.backend, PerImageTextUNet)


def test_too_little_memory_for_a_new_shape_is_the_error_that_makes_a_batch_smaller(
    device: FakeDevice, unet_of: Callable[..., TextUNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphed = GraphedTextUNet(unet_of(), inputs(1), 1000, tiles=Tiling(1, 1))

    def full(graph: FakeGraph, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    recording = torch.cuda.graph
    monkeypatch.setattr(torch.cuda, "graph", full)
    with pytest.raises(torch.OutOfMemoryError):
        graphed(**inputs(1, side=4))
    with pytest.raises(KernelError, match="out of memory"):
        GraphedTextUNet(unet_of(), inputs(1), 1000)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    assert graphed(**inputs(1, side=4)).shape == (1, 4, 4, 4), "it is tried again"


def test_tiles_follow_from_the_shape(unet_of: Callable[..., TextUNet]) -> None:
    small, large = (text_row_cost(CONFIG, inputs(3, side=side)) for side in (8, 16))
    assert 3.5 * small.map_bytes < large.map_bytes < 4 * small.map_bytes
    emoji = load_text_model(ZOO / "emoji")
    config = TextUNetConfig.from_dict(_config_of(emoji.card.name))
    context = torch.empty(1, 77, config.cross_attention_dim if isinstance(config.cross_attention_dim, int) else 0)
    given = {"x": torch.empty(1, *emoji.shape), "t": torch.ones(1), "context": context}
    assert tiling(text_row_cost(config, given)) == Tiling(16, 4)


def _config_of(name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((ZOO / name / "unet" / "config.json").read_text())
    return {key: value for key, value in found.items() if not key.startswith("_")}
