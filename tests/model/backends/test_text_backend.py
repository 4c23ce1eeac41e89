"""Backends of the text-conditioned U-Net: the network's function, and an image's bits in a batch of any size."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoised.model.backends.packed import pack
from denoised.model.backends.text_backend import PerImageTextUNet, TextBackend
from denoised.model.backends.text_selection import check_backend, select_text_backend
from denoised.model.errors import KernelError
from denoised.model.networks.text_unet.text_unet import TextUNet
from tests.model.networks.text_unet.text_unet_configs import TWO_LEVEL_UNET

# SDXL's pooled text and size ids, and LCM's guidance scale.
ADDED_CONFIG = replace(
    TWO_LEVEL_UNET,
    addition_embed_type="text_time",
    addition_time_embed_dim=6,
    projection_class_embeddings_input_dim=6 * 6 + 20,
    time_cond_proj_dim=10,
)
Stir = Callable[..., None]


@pytest.fixture
def unet(stir: Stir) -> TextUNet:
    network = TextUNet(TWO_LEVEL_UNET).eval().requires_grad_(False)
    stir(network)
    return network


def inputs(count: int, height: int, width: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, height, width, generator=generator)
    return x, torch.linspace(3, 990, count), torch.randn(count, tokens, 24, generator=generator)


SHAPES = ((8, 8, 77), (2, 6, 77), (32, 32, 154), (18, 10, 77))  # height, width, tokens
# Each shape and each number of threads once; the other pairs are slow tests.
OFTEN = {("packed", *pair) for pair in zip(SHAPES, (2, 1, 3, 2), strict=True)} | {("per image", SHAPES[3], 3)}


@pytest.mark.parametrize(
    ("kind", "height", "width", "tokens", "threads"),
    [
        pytest.param(kind, *shape, threads, marks=() if (kind, shape, threads) in OFTEN else pytest.mark.slow)
        for kind in ("packed", "per image")
        for shape in SHAPES
        for threads in (1, 2, 3)
    ],
)
@torch.inference_mode()
def test_an_image_has_the_same_bits_in_a_batch_of_any_size(
    kind: str, height: int, width: int, tokens: int, threads: int, unet: TextUNet
) -> None:
    torch.set_num_threads(threads)
    backend: TextBackend = pack(deepcopy(unet)) if kind == "packed" else PerImageTextUNet(unet)
    x, t, context = inputs(5, height, width, tokens)
    alone = torch.cat([backend(x[k : k + 1], t[k : k + 1], context[k : k + 1]) for k in range(len(x))])
    torch.testing.assert_close(alone, unet(x, t, context), rtol=0, atol=1e-4)
    for count in (2, 3, 5):
        assert torch.equal(backend(x[:count], t[:count], context[:count]), alone[:count])


@pytest.mark.parametrize("kind", ["packed", "per image"])
@torch.inference_mode()
def test_pooled_text_size_ids_and_guidance_belong_to_their_image(kind: str, stir: Stir) -> None:
    unet = TextUNet(ADDED_CONFIG).eval()
    stir(unet)
    assert ADDED_CONFIG.added_inputs == ("pooled", "size_ids", "guidance")
    backend: TextBackend = pack(deepcopy(unet)) if kind == "packed" else PerImageTextUNet(unet)
    check_backend(backend, unet, 1000)
    x, t, context = inputs(9, 8, 8, 77)
    generator = torch.Generator().manual_seed(2)
    added = {
        "pooled": torch.randn(9, ADDED_CONFIG.pooled_dim, generator=generator),
        "size_ids": torch.randint(0, 2048, (9, 6), generator=generator).float(),
        "guidance": torch.linspace(1, 9, 9),
    }

    def evaluate(rows: slice) -> Tensor:
        return backend(x[rows], t[rows], context[rows], **{name: tensor[rows] for name, tensor in added.items()})

    alone = torch.cat([evaluate(slice(k, k + 1)) for k in range(9)])
    torch.testing.assert_close(alone, unet(x, t, context, **added), rtol=0, atol=1e-4)
    for count in (2, 3, 5, 9):
        assert torch.equal(evaluate(slice(count)), alone[:count])
    for name, tensor in added.items():
        changed = backend(x, t, context, **{**added, name: tensor.roll(1, 0)})
        assert (changed - alone).flatten(1).norm(dim=1).min() > 0


def test_a_cpu_gets_packed_weights(unet: TextUNet) -> None:
    x, t, context = inputs(2, 8, 8, 77)
    with torch.inference_mode():
        expected = unet(x, t, context)
        selection = select_text_backend(unet, 1000, "cpu")
        torch.testing.assert_close(selection.backend(x, t, context), expected, rtol=0, atol=1e-4)
    assert selection.numerics.startswith("packed/")
    assert selection.fallback is None
    assert next(unet.parameters()).device.type == "meta"


def test_another_function_is_refused(unet: TextUNet, stir: Stir) -> None:
    other = deepcopy(unet)
    stir(other, 1)
    with pytest.raises(KernelError, match="computes another function than the network"):
        check_backend(PerImageTextUNet(other), unet, 1000)


def test_bits_that_depend_on_the_batch_are_refused(unet: TextUNet) -> None:
    def backend(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        output: Tensor = unet(x, t, context)
        return output * (1 + 1e-6 * len(x))

    with pytest.raises(KernelError, match="other bits in a batch of 3"):
        check_backend(backend, unet, 1000)
