"""Adapters next to the layers of a U-Net: merged weights, an image's bits in any mix, and rows without adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from denoised.model.backends import adapted_network
from denoised.model.backends.adapted_backend import AdaptedBackend
from denoised.model.backends.adapted_network import AdaptedNetwork
from denoised.model.backends.packed import pack
from denoised.model.backends.text_backend import PerImageTextUNet, WholeBatchTextUNet
from denoised.model.checkpoints.lora.lora_targets import lora_targets
from denoised.model.networks.low_rank import LoraLayer
from denoised.model.networks.text_unet.text_unet import TextUNet
from tests.lora_adapters import halves
from tests.model.networks.text_unet.text_unet_configs import TWO_LEVEL_UNET

# Ranks, and pieces of the names of the layers that they change.
ADAPTERS = {"attention": (4, ("attn",)), "everything": (3, ("",)), "convolutions": (8, ("conv", "samplers", "proj"))}
LORAS: list[Mapping[str, float]] = [
    {},
    {"attention": 1.0},
    {"everything": -0.5, "attention": 0.7},
    {},
    {"convolutions": 2.0},
    {"attention": 0.25},
    {"everything": 1.0, "convolutions": 0.5, "attention": 1.0},
]
KINDS = ("packed", "per image", "packed with another backend")
Stir = Callable[..., None]


@pytest.fixture
def unet(stir: Stir) -> TextUNet:
    network = TextUNet(TWO_LEVEL_UNET).eval().requires_grad_(False)
    stir(network)
    return network


@pytest.fixture
def layers(unet: TextUNet) -> dict[str, list[LoraLayer]]:
    found: dict[str, list[LoraLayer]] = {}
    for seed, (name, (rank, pieces)) in enumerate(ADAPTERS.items()):
        generator = torch.Generator().manual_seed(seed)
        targets = [each for each in lora_targets({"unet": unet}) if any(piece in each.module for piece in pieces)]
        found[name] = [
            LoraLayer("unet", each.module, *halves(each, rank, generator), alpha=float(seed + 1)) for each in targets
        ]
    return found


def build(kind: str, unet: TextUNet, layers: Mapping[str, list[LoraLayer]]) -> AdaptedBackend:
    if kind == "per image":
        base = PerImageTextUNet(unet)
        return AdaptedBackend(base, base, AdaptedNetwork(unet, unet, layers.__getitem__, layers, packed=False))
    packed = pack(deepcopy(unet))
    network = AdaptedNetwork(packed, unet, layers.__getitem__, layers, packed=True)
    adapted = WholeBatchTextUNet(packed)
    return AdaptedBackend(adapted if kind == "packed" else PerImageTextUNet(unet), adapted, network)


def inputs(count: int, height: int = 8, width: int = 12, tokens: int = 77) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, height, width, generator=generator)
    return x, torch.linspace(3, 990, count), torch.randn(count, tokens, 24, generator=generator)


def merged(unet: TextUNet, layers: Mapping[str, list[LoraLayer]], loras: Mapping[str, float]) -> TextUNet:
    """The network with W + Σ w·(alpha/rank)·B·A."""
    other = deepcopy(unet)
    for name, weight in loras.items():
        for layer in layers[name]:
            other.get_submodule(layer.module).weight += weight * layer.delta()
    return other


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_row_is_that_of_the_merged_weights(kind: str, unet: TextUNet, layers: dict[str, list[LoraLayer]]) -> None:
    x, t, context = inputs(len(LORAS))
    found = build(kind, unet, layers)(LORAS, x, t, context)
    for row, loras in enumerate(LORAS):
        own = slice(row, row + 1)
        expected = merged(unet, layers, loras)(x[own], t[own], context[own])
        scale = expected.abs().max()
        torch.testing.assert_close(found[own] / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "size", "threads"),
    [
        *((kind, (8, 12, 77), 1) for kind in KINDS),
        *(pytest.param(kind, (2, 2, 154), 2, marks=() if kind == "packed" else pytest.mark.slow) for kind in KINDS),
    ],
)
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_any_mix(
    kind: str, size: tuple[int, int, int], threads: int, unet: TextUNet, layers: dict[str, list[LoraLayer]]
) -> None:
    torch.set_num_threads(threads)
    x, t, context = inputs(len(LORAS), *size)
    backend = build(kind, unet, layers)
    plain = backend.base(x, t, context)
    alone = torch.cat([backend([LORAS[k]], x[k : k + 1], t[k : k + 1], context[k : k + 1]) for k in range(len(LORAS))])
    for row, loras in enumerate(LORAS):
        assert torch.equal(alone[row], plain[row]) == (not loras), "adapters change rows that name them, and no other"
    for rows in ([1, 5], [0, 2, 1, 6], [6, 5, 4, 3, 2, 1, 0]):
        mixed = backend([LORAS[k] for k in rows], x[rows], t[rows], context[rows])
        assert torch.equal(mixed, alone[rows]), rows


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_adapters_beyond_the_limit_make_room_and_come_back(
    kind: str, unet: TextUNet, layers: dict[str, list[LoraLayer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapted_network, "MAX_ATTACHED", 1)
    x, t, context = inputs(1)
    backend = build(kind, unet, layers)
    first = {name: backend([{name: 1.0}], x, t, context) for name in ADAPTERS}
    assert torch.equal(backend([{}], x, t, context), backend.base(x, t, context))
    for name in reversed(list(ADAPTERS)):
        assert torch.equal(backend([{name: 1.0}], x, t, context), first[name])


@torch.inference_mode()
def test_layers_that_no_adapter_changes_have_no_hook(unet: TextUNet, layers: dict[str, list[LoraLayer]]) -> None:
    backend = build("per image", unet, layers)
    x, t, context = inputs(1)
    backend([{}], x, t, context)
    assert not any(module._forward_hooks for module in unet.modules()), "nothing is attached before it is asked for"
    backend([{"attention": 1.0}], x, t, context)
    hooked = {name for name, module in unet.named_modules() if module._forward_hooks}
    assert hooked == {layer.module for layer in layers["attention"]}
