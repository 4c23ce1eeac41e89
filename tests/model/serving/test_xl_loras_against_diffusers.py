"""Adapters for Stable Diffusion XL: two text encoders and the U-Net, in every dialect, equal to diffusers with peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoised.model.checkpoints.lora.lora import LoraTarget
from denoised.model.checkpoints.text_to_image.text_pipeline import read_text_pipeline
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import CONTEXT
from denoised.model.serving.loading import LoadedModel, load_for_serving
from denoised.model.serving.sampling import sample
from tests.lora_adapters import diffusers, kohya, peft, targets_of, write_lora
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, build_xl_pipeline, save_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft and diffusers

TOLERANCE = 1e-4
T = 300.0


def kohya_with_original_names(target: LoraTarget, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """As kohya's trainer names the U-Net of XL: `lora_unet_input_blocks_4_1_…`."""
    return kohya(LoraTarget(target.component, (*target.aliases, target.module)[0], target.shape), down, up)


FILES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "peft": (peft, ("attn", "mlp", "ff.net", "conv1", "proj_in")),
    "diffusers": (diffusers, ("attn1.to_", "attn2.to_")),
    "kohya": (kohya, ("attn", "mlp", "ff.net")),
    "original": (kohya_with_original_names, ("attn", "ff.net", "proj_out")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    # Two layers a block, as in SDXL: diffusers reads the original names of that shape alone.
    return save_pipeline(folder / "tiny-xl", build=build_xl_pipeline, unet={"layers_per_block": 2})


@pytest.fixture(scope="module")
def networks(pipeline: Any, folder: Path) -> dict[str, nn.Module]:
    read = read_text_pipeline(folder / "tiny-xl")
    return {"unet": read.unet, "text_encoder": read.text_encoders[0], "text_encoder_2": read.text_encoders[1]}


@pytest.fixture(scope="module")
def loaded(networks: dict[str, nn.Module], folder: Path) -> LoadedModel:
    for seed, (name, (dialect, pieces)) in enumerate(FILES.items()):
        path = folder / "loras" / f"{name}.safetensors"
        write_lora(path, targets_of(networks, *pieces), dialect, rank=2 + seed, seed=seed)
    second = {"text_encoder_2": networks["text_encoder_2"]}
    write_lora(folder / "loras/second text.safetensors", targets_of(second, "self_attn"), kohya, seed=9)
    found = load_for_serving(folder / "tiny-xl", loras=folder / "loras")
    assert not found.lora_problems
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

    yield load
    pipeline.unload_lora_weights()


@pytest.mark.parametrize(
    "loras",
    [*({name: 1.0} for name in (*FILES, "second text")), {"peft": 0.6, "kohya": -1.5}],
    ids=lambda loras: ", ".join(loras),
)
@torch.inference_mode()
def test_texts_pooled_vector_and_network_are_those_of_diffusers(
    loras: dict[str, float], loaded: LoadedModel, adapted: Any
) -> None:
    model, x = loaded.model, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    t, alpha, sigma = torch.full((1,), T), torch.full((1,), 0.8), torch.full((1,), 0.6)
    conditioning, plain = (
        model.encode([ConditioningRequest(prompt=PROMPT, loras=own)]) for own in (loras, dict[str, float]())
    )
    found = model.denoise(x, t, alpha, sigma, conditioning).epsilon
    assert (found - model.denoise(x, t, alpha, sigma, plain).epsilon).abs().max() > 50 * TOLERANCE
    theirs = adapted(loras)
    context, _, pooled, _ = theirs.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(conditioning[CONTEXT], context, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(conditioning["pooled"], pooled, rtol=0, atol=TOLERANCE)
    added = {"text_embeds": pooled, "time_ids": conditioning["size_ids"]}
    expected = theirs.unet(x, T, context, added_cond_kwargs=added).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_rows_of_a_batch_have_adapters_of_their_own_and_the_same_bits_as_alone(loaded: LoadedModel) -> None:
    choices: list[dict[str, float]] = [{}, {"peft": 1.0}, {"second text": 1.0}, {"kohya": 0.5, "original": -1.0}]
    requests = [
        ConditioningRequest(prompt=PROMPT, negative_prompt=NEGATIVE_PROMPT, loras=own) for own in (*choices, {})
    ]
    options: dict[str, Any] = {"sampler": "ddim", "steps": 3, "guidance_scale": 4.0}
    together = sample(loaded.model, requests, seed=3, **options)
    for k, request in enumerate(requests):
        assert torch.equal(sample(loaded.model, [request], seed=3 + k, **options)[0], together[k])


def test_an_adapter_for_another_base_is_refused_by_what_it_was_made_for(folder: Path, loaded: LoadedModel) -> None:
    save_pipeline(folder / "tiny-sd")
    read = read_text_pipeline(folder / "tiny-sd")
    networks = {"unet": read.unet, "text_encoder": read.text_encoders[0]}
    for name, dialect in (("peft", peft), ("diffusers", diffusers), ("kohya", kohya)):
        write_lora(folder / "sd1" / f"{name}.safetensors", targets_of(networks, "attn"), dialect)
    refused = load_for_serving(folder / "tiny-xl", loras=folder / "sd1")
    assert refused.model.card.loras == []
    assert list(refused.lora_problems) == [
        f"{folder}/sd1/{name}.safetensors: this adapter is for a model whose text has 32 channels; the model is one "
        "whose text has 56 channels"
        for name in ("diffusers", "kohya", "peft")
    ]
    back = load_for_serving(folder / "tiny-sd", loras=folder / "loras")
    assert back.model.card.loras == []
    assert len(back.lora_problems) == len(FILES) + 1
