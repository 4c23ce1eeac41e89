"""Low-rank adapters of every dialect: the outputs of text encoder and U-Net equal those of diffusers with peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoised.model.checkpoints.text_to_image.text_pipeline import read_text_pipeline
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.latent_model import CONTEXT
from denoised.model.serving.loading import LoadedModel, load_for_serving
from tests.lora_adapters import diffusers, kohya, peft, targets_of, write_lora
from tests.text_pipelines import PROMPT, save_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft and diffusers

TOLERANCE = 1e-4
T = 300.0
# File, dialect, and pieces of the names of the layers that it changes: linear layers, and convolutions of 1 and 3.
FILES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "peft": (peft, ("attn", "mlp", "ff.net", "conv1", "conv_shortcut", "proj_in", "samplers", "time_embed")),
    "diffusers": (diffusers, ("attn1.to_", "attn2.to_")),
    "kohya": (kohya, ("attn", "mlp", "ff.net", "conv2", "conv_in", "proj_out")),
    "unet only": (peft, ("attn2",)),
    "text only": (kohya, ("self_attn", "mlp")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return save_pipeline(folder / "tiny-sd")


@pytest.fixture(scope="module")
def networks(pipeline: Any, folder: Path) -> dict[str, nn.Module]:
    read = read_text_pipeline(folder / "tiny-sd")
    return {"unet": read.unet, "text_encoder": read.text_encoders[0]}


@pytest.fixture(scope="module")
def loaded(networks: dict[str, nn.Module], folder: Path) -> LoadedModel:
    for seed, (name, (dialect, pieces)) in enumerate(FILES.items()):
        rank = 2 + seed
        write_lora(
            folder / "loras" / f"{name}.safetensors", targets_of(networks, *pieces), dialect, rank=rank, seed=seed
        )
    found = load_for_serving(folder / "tiny-sd", loras=folder / "loras")
    assert not found.lora_problems
    assert [lora.name for lora in found.model.card.loras] == sorted(FILES)
    return found


@pytest.fixture
def adapted(pipeline: Any, folder: Path) -> Iterator[Any]:
    """`adapted({name: weight})`: diffusers' pipeline with adapters."""

    def load(loras: Mapping[str, float]) -> Any:
        for name in loras:
            adapter = name.replace(" ", "_")
            pipeline.load_lora_weights(folder / "loras", weight_name=f"{name}.safetensors", adapter_name=adapter)
        pipeline.set_adapters([name.replace(" ", "_") for name in loras], list(loras.values()))
        return pipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield load
        pipeline.unload_lora_weights()


def noise(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(7))


def network_output(loaded: LoadedModel, x: Tensor, conditioning: Conditioning) -> Tensor:
    """ε̂, which is what the U-Net predicts."""
    t, alpha, sigma = torch.full((len(x),), T), torch.full((len(x),), 0.8), torch.full((len(x),), 0.6)
    return loaded.model.denoise(x, t, alpha, sigma, conditioning).epsilon


@pytest.mark.parametrize(
    "loras",
    [
        *({name: 1.0} for name in FILES),
        {"peft": 0.6, "kohya": -1.5},
        {"diffusers": 2.0, "text only": 0.3, "unet only": 1.25},
    ],
    ids=lambda loras: ", ".join(loras),
)
@torch.inference_mode()
def test_text_and_network_are_those_of_diffusers(loras: dict[str, float], loaded: LoadedModel, adapted: Any) -> None:
    conditioning = loaded.model.encode([ConditioningRequest(prompt=PROMPT, loras=loras)])
    found = network_output(loaded, noise(1), conditioning)
    plain = loaded.model.encode([ConditioningRequest(prompt=PROMPT)])
    assert (found - network_output(loaded, noise(1), plain)).abs().max() > 0.01
    theirs = adapted(loras)
    context = theirs.encode_prompt(PROMPT, "cpu", 1, False)[0]
    torch.testing.assert_close(conditioning[CONTEXT], context, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found, theirs.unet(noise(1), T, context).sample, rtol=0, atol=TOLERANCE)
