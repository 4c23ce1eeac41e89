"""The precision of text models: which a device has, what the networks compute in it, and the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from denoised.model.backends.numerics import PRECISIONS, Precision
from denoised.model.backends.precision import precision_refusal
from denoised.model.backends.text_selection import select_text_backend
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import ZOO, load_for_serving
from denoised.model.serving.sampling import sample
from tests.lora_adapters import kohya, peft, targets_of, write_lora
from tests.model.networks.text_unet.text_unet_configs import TWO_LEVEL_UNET
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, build_pipeline, build_xl_pipeline, save_pipeline

Stir = Callable[..., None]


@pytest.mark.parametrize(
    ("device", "served"), [("cpu", {"float32", "bfloat16"}), ("mps", {"float32"}), ("cuda:1", set(PRECISIONS))]
)
def test_a_device_is_offered_what_it_has(device: str, served: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    assert {precision for precision in PRECISIONS if precision_refusal(device, precision) is None} == served


def test_an_old_gpu_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert [precision_refusal("cuda", precision) for precision in ("float32", "float16")] == [None, None]
    assert precision_refusal("cuda", "bfloat16") == (
        "precision = 'bfloat16' needs a GPU of compute capability 8.0; 'cuda' has 7.5 (available: float32, float16)"
    )
    assert precision_refusal("cpu", "float16") == (
        "precision = 'float16' is not available on 'cpu' (available: float32, bfloat16)"
    )


@pytest.fixture
def unet(stir: Stir) -> TextUNet:
    network = TextUNet(TWO_LEVEL_UNET).eval().requires_grad_(False)
    stir(network)
    return network


def inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, 16, 16, generator=generator)
    return x, torch.linspace(3, 990, count), torch.randn(count, 77, 24, generator=generator)


@pytest.mark.parametrize(
    ("precision", "limit", "threads"),
    [
        # Each number of threads once; the other pairs are slow tests.
        pytest.param(precision, limit, threads, marks=() if threads in often else pytest.mark.slow)
        for precision, limit, often in (("bfloat16", 0.05, (1, 3)), ("float16", 0.01, (2,)))
        for threads in (1, 2, 3)
    ],
)
@torch.inference_mode()
def test_a_network_in_half_precision_gives_an_image_the_same_bits_in_any_batch(
    precision: Precision, limit: float, threads: int, unet: TextUNet
) -> None:
    torch.set_num_threads(threads)
    x, t, context = inputs(7)
    expected = unet(x, t, context)
    selection = select_text_backend(unet, 1000, "cpu", precision=precision)
    assert selection.precision == precision
    assert (selection.refused, selection.fallback) == (None, None)
    assert selection.numerics.startswith("per-image/")
    assert selection.numerics.endswith(f"/{precision}")
    assert unet.conv_in.weight.is_meta, "the weights in float32 are freed"
    together = selection.backend(x, t, context)
    assert together.dtype == torch.float32
    assert 0 < (together - expected).norm() / expected.norm() < limit
    for count in (1, 2, 5):
        for start in (0, 7 - count):
            rows = slice(start, start + count)
            assert torch.equal(selection.backend(x[rows], t[rows], context[rows]), together[rows])


@torch.inference_mode()
def test_a_network_that_overflows_in_float16_is_served_in_float32_and_says_so(unet: TextUNet) -> None:
    unet.conv_in.weight.mul_(1e6)
    x, t, context = inputs(2)
    expected = unet(x, t, context)
    selection = select_text_backend(unet, 1000, "cpu", precision="float16")
    assert selection.precision == "float32"
    assert selection.refused is not None
    assert selection.refused.startswith("the float16 backend computes another function than the network")
    assert selection.numerics.endswith("-threads")
    torch.testing.assert_close(selection.backend(x, t, context), expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module", params=[build_pipeline, pytest.param(build_xl_pipeline, marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / request.param.__name__
    save_pipeline(folder, build=request.param)
    return folder


def loaded(folder: Path, precision: Precision, loras: Path | None = None) -> LatentModel:
    found = load_for_serving(folder, precision=precision, loras=loras)
    assert found.refused_precision is None
    assert not found.lora_problems
    assert isinstance(found.model, LatentModel)
    return found.model


OPTIONS: dict[str, Any] = {"sampler": "ddim", "steps": 3, "guidance_scale": 4.0}


def test_a_picture_in_bfloat16_is_near_that_in_float32_and_the_same_in_any_batch(folder: Path) -> None:
    exact, half = loaded(folder, "float32"), loaded(folder, "bfloat16")
    backend, *rest = half.card.numerics.split("/")
    assert backend.startswith("per-image+per-image+")
    assert rest[-1] == "bfloat16"
    assert "bfloat16" not in exact.card.numerics
    texts = [PROMPT, "a fox", ""]
    requests = [ConditioningRequest(prompt=text, negative_prompt=NEGATIVE_PROMPT) for text in texts]
    together = sample(half, requests, seed=3, **OPTIONS)
    expected = sample(exact, requests, seed=3, **OPTIONS)
    assert 0 < (together - expected).norm() / expected.norm() < 0.2
    for k, request in enumerate(requests):
        assert torch.equal(sample(half, [request], seed=3 + k, **OPTIONS)[0], together[k])


def test_adapters_follow_the_precision_of_their_layers(folder: Path, tmp_path: Path) -> None:
    networks = {"unet": TextUNet(_unet_of(folder))}
    write_lora(tmp_path / "one.safetensors", targets_of(networks, "attn", "conv1"), peft)
    write_lora(tmp_path / "two.safetensors", targets_of(networks, "attn2", "ff.net"), kohya, seed=1)
    exact, half = loaded(folder, "float32", tmp_path), loaded(folder, "bfloat16", tmp_path)
    loras: list[dict[str, float]] = [{"one": 1.0}, {}, {"one": 0.5, "two": -1.0}]
    requests = [ConditioningRequest(prompt=PROMPT, negative_prompt=NEGATIVE_PROMPT, loras=own) for own in loras]
    together = sample(half, requests, seed=3, **OPTIONS)
    expected = sample(exact, requests, seed=3, **OPTIONS)
    assert 0 < (together - expected).norm() / expected.norm() < 0.2
    for k, request in enumerate(requests):
        assert torch.equal(sample(half, [request], seed=3 + k, **OPTIONS)[0], together[k])


def _unet_of(folder: Path) -> Any:
    from denoised.model.checkpoints.text_to_image.text_pipeline import read_text_pipeline

    return read_text_pipeline(folder).unet.config


def test_models_of_pixels_stay_in_float32_on_a_cpu_and_say_so() -> None:
    found = load_for_serving(ZOO / "digits", precision="bfloat16")
    assert found.refused_precision == "cpu has no bfloat16 for models of pixels"
    assert "bfloat16" not in found.model.card.numerics
