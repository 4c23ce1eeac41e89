"""Single-file checkpoints against diffusers' own conversion: every name, every weight, the schedule and the folder."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from denoised.model.checkpoints.weights import StoredTensor
from denoised.model.conversion import convert
from denoised.model.conversion.convert import Conversion, plan_conversion, write_conversion
from denoised.model.conversion.single_file import Family, SingleFile
from denoised.model.errors import CheckpointError
from denoised.model.serving.loading import load_text_model
from denoised.model.text.tokenizer import TextTokenizer
from tests.original_checkpoints import SD1, SD2, SDXL, OriginalModel, shrunken, write_checkpoint
from tests.text_pipelines import write_vocabulary

FULL = {Family.SD1: SD1, Family.SD2: SD2, Family.SDXL: SDXL}
# Weights of the published networks.
UNET_WEIGHTS = {Family.SD1: 859_520_964, Family.SD2: 865_910_724, Family.SDXL: 2_567_463_684}
SAMPLERS = {Family.SD1: "plms", Family.SD2: "ddim", Family.SDXL: "euler"}
AUTOENCODER_WEIGHTS = 83_653_863
ENCODER_WEIGHTS = {
    Family.SD1: [123_060_480],
    Family.SD2: [340_387_840],
    Family.SDXL: [123_060_480, 694_659_840],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_vocabulary(folder)
    return folder


@pytest.fixture(scope="module")
def small(tokenizer: Path) -> dict[Family, OriginalModel]:
    size = TextTokenizer.from_folder(tokenizer).vocabulary_size
    return {family: shrunken(model, size) for family, model in FULL.items()}


def full_size(family: Family) -> Conversion:
    """The published model's names and shapes, without a file."""
    tensors = {
        name: StoredTensor(Path("x.safetensors"), name, shape, "I64" if "position_ids" in name else "F32")
        for name, shape in FULL[family].shapes().items()
    }
    return plan_conversion(SingleFile(Path("x.safetensors"), tensors, {}, family), None)


def counted(expected: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in expected.values())


@pytest.mark.parametrize("family", Family)
def test_the_published_models_have_their_numbers_of_weights(family: Family) -> None:
    conversion = full_size(family)
    assert counted(conversion.unet.expected) == UNET_WEIGHTS[family]
    assert counted(conversion.autoencoder.expected) == AUTOENCODER_WEIGHTS
    assert [counted(network.expected) for _, network in conversion.encoders] == ENCODER_WEIGHTS[family]


def theirs(family: Family, conversion: Conversion, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """diffusers' conversion of the same tensors, by part."""
    found = {
        "unet": convert_ldm_unet_checkpoint(dict(tensors), conversion.unet_config.to_dict()),
        "vae": convert_ldm_vae_checkpoint(dict(tensors), conversion.autoencoder_config.to_dict()),
    }
    for encoder, _ in conversion.encoders:
        prefix = encoder.prefix.removesuffix("text_model.")
        if encoder.open_clip:
            config = CLIPTextConfig(**encoder.config.to_dict())
            with torch.device("meta"):
                model = CLIPTextModelWithProjection(config)
            found[encoder.folder] = convert_open_clip_checkpoint(model, dict(tensors), prefix)
        else:
            found[encoder.folder] = convert_ldm_clip_checkpoint(dict(tensors), prefix)
    return found


@pytest.mark.parametrize("family", Family)
def test_every_name_of_the_published_models_is_diffusers_own(family: Family) -> None:
    conversion = full_size(family)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in FULL[family].shapes().items()}
    names = {id(tensor): name for name, tensor in tensors.items()}
    converted = theirs(family, conversion, tensors)
    for part, network in (("unet", conversion.unet), ("vae", conversion.autoencoder)):
        # The autoencoder's 1×1 convolutions become linear layers, as views.
        origins = {name: tensor if tensor._base is None else tensor._base for name, tensor in converted[part].items()}
        found = {name: names[id(origin)] for name, origin in origins.items()}
        assert found == {name: source.name for name, source in network.sources.items()}


@pytest.fixture(scope="module", params=Family)
def converted(
    request: pytest.FixtureRequest,
    small: dict[Family, OriginalModel],
    tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Conversion, dict[str, Tensor], Path]:
    """A shrunken file, its tensors and the folder made of it."""
    folder = tmp_path_factory.mktemp("converted")
    tensors = write_checkpoint(folder / "model.safetensors", small[request.param])
    conversion = plan_conversion(SingleFile.open(folder / "model.safetensors"), None)
    write_conversion(conversion, folder / "model", tokenizer)
    return conversion, tensors, folder / "model"


FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}


def test_every_weight_equals_diffusers_conversion(converted: tuple[Conversion, dict[str, Tensor], Path]) -> None:
    conversion, tensors, folder = converted
    for part, expected in theirs(conversion.file.family, conversion, tensors).items():
        ours = load_file(folder / FILES[part])
        layers = {name for name in expected if ".layers.2." in name and part == "text_encoder"}
        left_out = {name for name in expected if name.endswith(("position_ids", "text_projection.weight"))} | layers
        if part == "text_encoder_2":
            left_out = set()
        assert ours.keys() == expected.keys() - left_out, part
        for name, tensor in ours.items():
            other = expected[name]
            assert torch.equal(tensor, other.reshape(tensor.shape)), name


def test_the_folder_loads_in_diffusers(converted: tuple[Conversion, dict[str, Tensor], Path]) -> None:
    conversion, _, folder = converted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = DiffusionPipeline.from_pretrained(folder)
    for part, name in FILES.items():
        if (folder / name).exists():
            theirs = getattr(pipeline, part).state_dict()
            ours = {key.removeprefix("text_model."): tensor for key, tensor in load_file(folder / name).items()}
            assert all(torch.equal(ours[key.removeprefix("text_model.")], tensor) for key, tensor in theirs.items())
    assert pipeline.tokenizer.pad_token == ("!" if conversion.file.family is Family.SD2 else "<|endoftext|>")


def test_diffusers_makes_the_same_pipeline_of_the_file(
    converted: tuple[Conversion, dict[str, Tensor], Path],
) -> None:
    conversion, _, folder = converted
    if conversion.file.family is not Family.SD1:
        pytest.skip("diffusers tells 2.x and XL apart by sizes that a shrunken file does not have")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline.from_single_file(
            str(conversion.file.path), config=str(folder), local_files_only=True, safety_checker=None
        )
    for part in ("unet", "vae", "text_encoder"):
        ours = {key.removeprefix("text_model."): tensor for key, tensor in load_file(folder / FILES[part]).items()}
        for key, tensor in getattr(pipeline, part).state_dict().items():
            assert torch.equal(ours[key.removeprefix("text_model.")], tensor), key


def test_the_folder_is_served(converted: tuple[Conversion, dict[str, Tensor], Path]) -> None:
    conversion, _, folder = converted
    card = load_text_model(folder).card
    assert card.prediction_type == ("v_prediction" if conversion.file.family is Family.SD2 else "epsilon")
    assert card.default.sampler == SAMPLERS[conversion.file.family]


@pytest.mark.parametrize(
    ("family", "inputs", "pipeline", "pictures"),
    [
        (Family.SD1, 8, "StableDiffusionInstructPix2PixPipeline", "edit"),
        (Family.SD1, 9, "StableDiffusionInpaintPipeline", "inpaint"),
        (Family.SDXL, 9, "StableDiffusionXLInpaintPipeline", "inpaint"),
    ],
)
def test_models_that_see_a_picture_become_their_pipelines(
    family: Family,
    inputs: int,
    pipeline: str,
    pictures: str,
    small: dict[Family, OriginalModel],
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    tensors = write_checkpoint(tmp_path / "model.safetensors", replace(small[family], inputs=inputs))
    conversion = plan_conversion(SingleFile.open(tmp_path / "model.safetensors"), None)
    write_conversion(conversion, tmp_path / "model", tokenizer)
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["_class_name"] == pipeline
    found = load_file(tmp_path / "model" / FILES["unet"])["conv_in.weight"]
    assert torch.equal(found, tensors[f"{UNET}input_blocks.0.0.weight"])
    assert load_text_model(tmp_path / "model").card.pictures == pictures


def test_half_precision_stays(small: dict[Family, OriginalModel], tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    tensors = write_checkpoint(path, small[Family.SD1])
    save_file({name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}, path)
    write_conversion(plan_conversion(SingleFile.open(path), None), tmp_path / "half", tokenizer)
    assert {t.dtype for t in load_file(tmp_path / "half" / FILES["unet"]).values()} == {torch.float16}
    load_text_model(tmp_path / "half")


def test_what_the_network_predicts(small: dict[Family, OriginalModel], tmp_path: Path) -> None:
    def chosen(family: Family, given: Any = None, **more: Any) -> tuple[str, str]:
        write_checkpoint(tmp_path / "x.safetensors", small[family], **more)
        choice = plan_conversion(SingleFile.open(tmp_path / "x.safetensors"), given).choice
        return choice.prediction, choice.reason

    assert chosen(Family.SD1) == ("epsilon", "as in Stable Diffusion 1.x")
    assert chosen(Family.SD1, "v_prediction") == ("v_prediction", "as --prediction says")
    prediction, reason = chosen(Family.SD2)
    assert prediction == "v_prediction"
    assert reason.endswith("pass --prediction epsilon")
    assert chosen(Family.SD2, "epsilon")[0] == "epsilon"
    stated = {"modelspec.prediction_type": "epsilon"}
    assert chosen(Family.SD2, metadata=stated) == ("epsilon", "by the file's metadata")
    assert chosen(Family.SDXL, v_pred=torch.tensor([])) == ("v_prediction", "by the file's tensor 'v_pred'")


def test_zero_terminal_snr_is_read_from_the_file(
    small: dict[Family, OriginalModel], tokenizer: Path, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "x.safetensors", small[Family.SDXL], v_pred=torch.tensor([]), ztsnr=torch.tensor([]))
    write_conversion(plan_conversion(SingleFile.open(tmp_path / "x.safetensors"), None), tmp_path / "x", tokenizer)
    scheduler = json.loads((tmp_path / "x/scheduler/scheduler_config.json").read_text())
    assert scheduler["rescale_betas_zero_snr"] is True
    assert scheduler["timestep_spacing"] == "trailing"
    assert scheduler["prediction_type"] == "v_prediction"


# Files that are refused.


def without(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def changed(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {**tensors, name: tensor}


UNET = "model.diffusion_model."
VAE = "first_stage_model."
REFUSALS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "holds no U-Net; convert takes Stable Diffusion 1.x, 2.x and SDXL base": without(UNET),
    "holds a U-Net but no text encoder": without("cond_stage_model."),
    "holds no autoencoder": without("first_stage_model."),
    "is a refiner of Stable Diffusion XL": renamed("cond_stage_model.transformer.", "conditioner.embedders.0.model."),
    "holds a U-Net with diffusers' names": renamed(f"{UNET}input_blocks", "down_blocks.0"),
    "is an autoencoder alone": lambda tensors: {
        name.removeprefix(VAE): tensor for name, tensor in tensors.items() if name.startswith(VAE)
    },
    "is a low-rank adapter": lambda tensors: {"lora_unet_down_blocks_0.lora_up.weight": tensors["betas"]},
    "depth maps next to the latents, which is not converted": changed(
        f"{UNET}input_blocks.0.0.weight", torch.zeros(64, 5, 3, 3)
    ),
    "lacks 'model.diffusion_model.out.0.weight'": without(f"{UNET}out.0.weight"),
    "'model.diffusion_model.time_embed.0.weight' has shape (7, 7), which does not fit": changed(
        f"{UNET}time_embed.0.weight", torch.zeros(7, 7)
    ),
    "is of type I32": changed(f"{UNET}out.0.weight", torch.zeros(64, dtype=torch.int32)),
    "holds 'model.diffusion_model.extra.weight', which Stable Diffusion 1.x does not have": changed(
        f"{UNET}extra.weight", torch.zeros(1)
    ),
    "the U-Net is unlike any of Stable Diffusion 1.x: block_out_channels": changed(
        f"{UNET}input_blocks.1.0.in_layers.2.weight", torch.zeros(63, 64, 3, 3)
    ),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_files_that_are_something_else(message: str, small: dict[Family, OriginalModel], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = REFUSALS[message](write_checkpoint(path, small[Family.SD1]))
    if message.startswith("holds a U-Net with diffusers"):
        tensors = without(UNET)(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}"):
        plan_conversion(SingleFile.open(path), None)


def test_pickles_and_broken_files_are_never_opened(tmp_path: Path) -> None:
    pickled, truncated, huge = (tmp_path / name for name in ("a.ckpt", "b.safetensors", "c.safetensors"))
    pickled.write_bytes(pickle.dumps({"state_dict": {}}))
    truncated.write_bytes((1000).to_bytes(8, "little") + b"{}")
    huge.write_bytes((5 * 1024**2).to_bytes(8, "little") + b"{" + bytes(6 * 1024**2))
    expected = {
        pickled: "is a pickle, which can run code",
        truncated: "not a complete safetensors file",
        huge: "its header has 5242880 bytes (allowed: 4194304)",
        tmp_path / "gone.safetensors": "missing",
    }
    for path, message in expected.items():
        with pytest.raises(CheckpointError, match=re.escape(message)):
            SingleFile.open(path)


def test_an_existing_folder_is_not_touched(
    converted: tuple[Conversion, dict[str, Tensor], Path], tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="exists already; name a new folder"):
        write_conversion(converted[0], tmp_path / "mine", tokenizer)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_nothing_is_left_of_an_attempt_that_fails(
    converted: tuple[Conversion, dict[str, Tensor], Path],
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(convert, "save_json", fail)
    with pytest.raises(OSError, match="no space left"):
        write_conversion(converted[0], tmp_path / "new", tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_another_vocabulary_is_refused(small: dict[Family, OriginalModel], tokenizer: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.safetensors", shrunken(SD1, 50))
    conversion = plan_conversion(SingleFile.open(tmp_path / "x.safetensors"), None)
    with pytest.raises(CheckpointError, match="tokens, but the text encoder has 50"):
        write_conversion(conversion, tmp_path / "x", tokenizer)
