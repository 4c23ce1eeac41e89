"""Folders of pipelines: which are served as a whole, and how the others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from denoised.model.checkpoints.text_to_image.pipelines import check_text_weights, is_text_pipeline, unused_parts
from denoised.model.errors import CheckpointError
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import ZOO, load_for_serving, load_model, load_text_model
from tests.text_pipelines import build_xl_pipeline, save_pipeline

INDEX = "model_index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny-sd"
    save_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def saved_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny-xl"
    save_pipeline(folder, build=build_xl_pipeline)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved pipeline that a test may change."""
    return copied(saved, tmp_path)


@pytest.fixture
def xl_folder(saved_xl: Path, tmp_path: Path) -> Path:
    """The same of a Stable Diffusion XL pipeline."""
    return copied(saved_xl, tmp_path)


def copied(saved: Path, tmp_path: Path) -> Path:
    copy = tmp_path / saved.name
    for path in sorted(saved.rglob("*")):
        if path.is_file():
            target = copy / path.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return copy


def change(path: Path, **keys: Any) -> None:
    """Set keys of a JSON file; None removes a key."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **keys}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def test_a_stable_diffusion_folder_is_served_under_its_name(folder: Path) -> None:
    loaded = load_for_serving(folder)
    assert isinstance(loaded.model, LatentModel)
    assert loaded.model.card.name == "tiny-sd"
    assert loaded.model.card.numerics.startswith("packed+packed+packed/")
    assert len(loaded.model.card.digest) == 12


def test_the_safety_checker_is_accepted_and_not_run(folder: Path) -> None:
    change(folder / INDEX, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert is_text_pipeline(folder)
    assert unused_parts(folder) == ["safety_checker"]
    load_text_model(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("StableDiffusionXLImg2ImgPipeline", "redraws pictures, such as the refiner, which is not served"),
        ("StableDiffusionXLControlNetPipeline", "is a Stable Diffusion XL model with further parts"),
        ("StableDiffusionImg2ImgPipeline", "is a model that redraws pictures"),
        ("StableDiffusion3Pipeline", "is a Stable Diffusion 3 model, a transformer"),
        ("StableUnCLIPPipeline", "is an unCLIP model"),
        ("PixArtAlphaPipeline", "is a diffusion transformer"),
        ("SomethingNewPipeline", "is a text-to-image model of another family"),
        ("StableDiffusionUpscalePipeline", "is a model for upscaling"),
        ("KandinskyV22Pipeline", "is a Kandinsky model"),
        ("KolorsPipeline", "is a Kolors model"),
        ("IFPipeline", "is a DeepFloyd IF model"),
        ("DiTPipeline", "is a diffusion transformer"),
        ("FluxPipeline", "is a flow-matching transformer"),
    ],
)
def test_other_pipelines_are_refused_by_name(folder: Path, name: str, words: str) -> None:
    change(folder / INDEX, _class_name=name)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_for_serving(folder)
    assert name in str(caught.value)
    assert "served: pipelines of a U-Net and a scheduler, StableDiffusionPipeline, " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "keys", "words"),
    [
        (INDEX, {"vae": None}, "the pipeline has no vae"),
        (INDEX, {"_class_name": "StableDiffusionXLPipeline"}, "the pipeline has no tokenizer_2"),
        (INDEX, {"requires_aesthetics_score": True}, "the folder holds the refiner of Stable Diffusion XL"),
        ("unet/config.json", {"in_channels": 5}, "depth maps"),
        ("unet/config.json", {"in_channels": 7}, "to enlarge it"),
        ("unet/config.json", {"num_class_embeds": 1000}, "num_class_embeds = 1000 is not supported here"),
        (
            "unet/config.json",
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 68,
            },
            "addition_embed_type = 'text_time' is not that of the pipeline's class",
        ),
        (INDEX, {"image_encoder": ["transformers", "CLIPVisionModel"]}, "image_encoder' is not supported"),
        ("unet/config.json", {"in_channels": 10}, "takes other inputs than latents, which no request carries"),
        ("unet/config.json", {"in_channels": 9}, "shape"),
        ("unet/config.json", {"cross_attention_dim": 48}, "cross_attention_dim = 48, but the text encoder has"),
        ("unet/config.json", {"sample_size": 7}, "sample_size = 7 is not a positive multiple of 2"),
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "_class_name = 'UNet2DModel' is not supported"),
        ("unet/config.json", {"addition_embed_type": "text"}, "addition_embed_type"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "_class_name = 'AutoencoderTiny' is not supported"),
        ("text_encoder/config.json", {"vocab_size": 600, "eos_token_id": 5}, "vocab_size|embedding|shape|tokens"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 100}, "model_max_length = 100"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "other"}, "beta_schedule"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused_by_file_and_key(
    folder: Path, path: str, keys: dict[str, Any], words: str
) -> None:
    change(folder / path, **keys)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_for_serving(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "keys", "words"),
    [
        ("unet/config.json", {"projection_class_embeddings_input_dim": 60}, "leaves room for an aesthetic score"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 99}, "= 99 is not the 20 channels of the pool"),
        ("unet/config.json", {"cross_attention_dim": 32}, "but the text encoders have hidden_size = 56 in all"),
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type = None is not that of the pipeline"),
        ("text_encoder_2/config.json", {"projection_dim": 32}, "projection_class_embeddings_input_dim = 68 is not"),
        ("tokenizer_2/tokenizer_config.json", {"model_max_length": 50}, "the tokenizers' model_max_length differ"),
        (INDEX, {"force_zeros_for_empty_prompt": "no"}, "force_zeros_for_empty_prompt = 'no' is neither true"),
        (INDEX, {"image_encoder": ["transformers", "CLIPVisionModel"]}, "image_encoder' is not supported"),
        (INDEX, {"text_encoder": None}, "the pipeline has no text_encoder"),
    ],
)
def test_an_xl_folder_that_contradicts_itself_is_refused_by_file_and_key(
    xl_folder: Path, path: str, keys: dict[str, Any], words: str
) -> None:
    change(xl_folder / path, **keys)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_for_serving(xl_folder)
    assert str(xl_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_digest_of_an_xl_folder_depends_on_both_encoders_and_on_the_zeros(xl_folder: Path) -> None:
    digests = {load_text_model(xl_folder).card.digest}
    change(xl_folder / INDEX, force_zeros_for_empty_prompt=False)
    digests.add(load_text_model(xl_folder).card.digest)
    change(xl_folder / "text_encoder_2/config.json", layer_norm_eps=1e-4)
    digests.add(load_text_model(xl_folder).card.digest)
    assert len(digests) == 3


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights_are_refused_by_name(folder: Path, part: str) -> None:
    next((folder / part).glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"\.safetensors: missing"):
        load_for_serving(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_the_check_before_the_start_finds_missing_weights_of_every_part(xl_folder: Path, part: str) -> None:
    check_text_weights(xl_folder)
    next((xl_folder / part).glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=rf"{part}/\w+\.safetensors: missing"):
        check_text_weights(xl_folder)


def test_the_digest_depends_on_every_part(folder: Path) -> None:
    before = load_text_model(folder).card.digest
    change(folder / "vae/config.json", scaling_factor=0.5)
    after = load_text_model(folder).card.digest
    change(folder / "vae/config.json", _comment="no difference")
    assert after != before
    assert load_text_model(folder).card.digest == after


def test_the_card_may_name_defaults_and_the_colors_of_latents(folder: Path) -> None:
    card = {"default": {"sampler": "ddim", "steps": 7, "guidance_scale": 2.0}, "latent_rgb": [[0.1, 0.2, 0.3]] * 5}
    (folder / "model_card.json").write_text(json.dumps(card))
    model = load_text_model(folder)
    assert (model.card.default.sampler, model.card.default.steps, model.card.default.guidance_scale) == ("ddim", 7, 2.0)
    (folder / "model_card.json").write_text(json.dumps({"latent_rgb": [[0.1, 0.2, 0.3]] * 3}))
    with pytest.raises(CheckpointError, match="latent_rgb has 3 rows"):
        load_text_model(folder)


def test_a_command_for_models_of_pixels_says_what_the_folder_is(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a text-to-image pipeline, which this command does not take"):
        load_model(folder)


def test_a_model_of_pixels_is_no_text_pipeline() -> None:
    assert not is_text_pipeline(ZOO / "digits")
