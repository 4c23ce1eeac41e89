"""A folder that cannot be served is refused in one line that names the file, the key and the cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from denoised.model.errors import CheckpointError
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.loading import load_model

CONFIG = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CARD = "model_card.json"
INDEX = "model_index.json"
Folder = Callable[..., Path]


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message, message
    return message


def rewrite(folder: Path, file: str, **changes: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def rewrite_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    path = folder / WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


def test_a_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == f"{tmp_path / 'gone'}: no such model folder"


@pytest.mark.parametrize("file", [CONFIG, SCHEDULER, WEIGHTS])
def test_a_missing_file(folder: Folder, file: str) -> None:
    path = folder() / file
    path.unlink()
    assert refusal(folder_of(path, file)) == f"{path}: missing"


def folder_of(path: Path, file: str) -> Path:
    return path.parents[len(Path(file).parts) - 1]


def test_a_missing_tensor(folder: Folder) -> None:
    root = folder()
    path = rewrite_weights(root, lambda tensors: tensors.pop("conv_out.bias"))
    assert refusal(root) == f"{path}: lacks 'conv_out.bias' (1 tensor(s) missing)"


def test_an_extra_tensor(folder: Folder) -> None:
    root = folder()
    path = rewrite_weights(root, lambda tensors: tensors.update(surplus=torch.zeros(1)))
    assert refusal(root) == f"{path}: holds 'surplus', which the network does not have (1 extra)"


def test_a_tensor_of_another_shape(folder: Folder) -> None:
    root = folder()
    path = rewrite_weights(root, lambda tensors: tensors.update({"conv_in.bias": torch.zeros(9)}))
    assert refusal(root) == f"{path}: 'conv_in.bias' has shape (9,), the config asks for (8,)"


@pytest.mark.parametrize("kept", [0, 4, 500, 0.5, 0.999])
def test_a_truncated_file_of_weights(folder: Folder, kept: float) -> None:
    root = folder()
    path = root / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept >= 1 else len(whole) * kept)])
    assert refusal(root).startswith(f"{path}: not a complete safetensors file (")


def test_a_git_lfs_pointer_in_place_of_the_weights(folder: Folder) -> None:
    root = folder()
    (root / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 143000000\n")
    assert refusal(root) == f"{root / WEIGHTS}: is a Git LFS pointer, not the weights: run 'git lfs pull'"


def test_a_folder_in_place_of_the_weights(folder: Folder) -> None:
    root = folder()
    (root / WEIGHTS).unlink()
    (root / WEIGHTS).mkdir()
    assert str(root / WEIGHTS) in refusal(root)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"default": {"step": 5}}, "default.step: is not a key of this file; did you mean steps? (given: 5; allowed: "),
        ({"naem": "x"}, "naem: is not a key of this file; did you mean name? (given: 'x'; allowed: name, descr"),
        ({"default": {"steps": 0}}, "default.steps: 0 was given (allowed: 1 or more)"),
        ({"default": {"guidance_interval": [2, 1]}}, "default.guidance_interval: not a low level of at least 0 and a "),
        ({"default": {"spacing": "random"}}, "default: spacing = 'random' is not supported (supported: leading, trail"),
        (
            {"default": {"spacing": "geometric", "sigma_max": 1e9}},
            "default: sigma_min = 0.1 and sigma_max = 1e+09",
        ),
        ({"default": {"sigma_max": 3}}, "default: sigma_min and sigma_max need a spacing of levels, not of timesteps"),
        ({"default": {"sampler": "lcm", "spacing": "karras"}}, "default.sampler = 'lcm' takes no noise levels"),
        ({"default": {"steps": 3, "sigmas": [9, 1]}}, "default.steps = 3, but there are 2 default.sigmas"),
        ({"default": {"steps": 2, "sigmas": [1, 9]}}, "default: sigmas are not 2 falling values within "),
        (
            {"default": {"spacing": "learned"}},
            "default: spacing = 'learned' is not supported (supported: leading, trail",
        ),
        (
            {"learned_levels": [{"sampler": "lcm", "sigmas": [9, 1]}]},
            "learned_levels.0.sampler = 'lcm' is not a sampler",
        ),
        (
            {"learned_levels": [{"sampler": "ddim", "sigmas": [1, 9]}]},
            "learned_levels.0: sigmas are not 2 falling values",
        ),
        ({"learned_levels": [{"sampler": "ddim", "sigmas": []}]}, "learned_levels.0.sigmas: "),
        (
            {"learned_levels": [{"sampler": "ddim", "sigmas": [9, 1]}, {"sampler": "ddim", "sigmas": [8, 1]}]},
            "learned_levels.1 is the second list of 2 levels for ddim",
        ),
        ({"prompt_guide": {"parts": {"A": ["x"]}}}, "prompt_guide.parts.A.[key]: 'A' was given (allowed: text that "),
        ({"default": []}, "default: should be a JSON object (given: [])"),
    ],
)
def test_a_card_with_a_wrong_value(card: dict[str, Any], message: str, folder: Folder) -> None:
    root = folder()
    (root / CARD).write_text(json.dumps(card))
    assert refusal(root).startswith(f"{root / CARD}: {message}")


def test_a_config_key_that_is_not_understood(folder: Folder) -> None:
    root = folder()
    path = rewrite(root, CONFIG, cross_attention_dim=768)
    assert refusal(root).startswith(f"{path}: config key 'cross_attention_dim' is not understood")


@pytest.mark.parametrize("size", [None, 7, 0, -8, "8", [8], [8, 8, 8], [8, 7], 8.5])
def test_an_invalid_size(folder: Folder, size: Any) -> None:
    root = folder()
    path = rewrite(root, CONFIG, sample_size=size)
    assert refusal(root).startswith(f"{path}: sample_size ")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (
            {"class_embed_type": "identity"},
            "class_embed_type = 'identity' needs an embedding, which no request carries",
        ),
        (
            {"time_embedding_type": "learned", "num_train_timesteps": 1000},
            "lacks 'time_proj.weight' (1 tensor(s) missing)",
        ),
        ({"attention_head_dim": 32}, "attention_head_dim = 32 is over the 16 channels of a block"),
        ({"down_blocks": ["DownBlock2D"]}, "config key 'down_blocks' is the old name of 'down_block_types' and has"),
    ],
)
def test_a_network_that_cannot_be_built_or_served(folder: Folder, changes: dict[str, Any], cause: str) -> None:
    root = folder()
    path = rewrite(root, CONFIG, **changes)
    assert refusal(root).startswith(f"{root / WEIGHTS if 'lacks' in cause else path}: {cause}")


def test_a_learned_time_embedding_of_fewer_timesteps_than_the_scheduler_has(folder: Folder) -> None:
    root = folder()
    path = rewrite(root, CONFIG, time_embedding_type="learned", num_train_timesteps=10)
    rewrite_weights(root, lambda tensors: tensors.update({"time_proj.weight": torch.zeros(10, 8)}))
    assert refusal(root) == f"{path}: num_train_timesteps = 10, but the scheduler has 1000"


def test_a_pipeline_with_an_unsupported_part(folder: Folder) -> None:
    """CompVis/ldm-celebahq-256 has a UNet2DModel, but in the latent space of a decoder."""
    root = folder()
    path = rewrite(root, INDEX, vqvae=["diffusers", "VQModel"])
    assert refusal(root) == f"{path}: the pipeline's 'vqvae' is not supported (supported: unet, scheduler)"


def test_an_unsupported_network_class(folder: Folder) -> None:
    root = folder()
    path = rewrite(root, CONFIG, _class_name="UNet2DConditionModel")
    assert refusal(root) == f"{path}: _class_name = 'UNet2DConditionModel' is not supported (supported: 'UNet2DModel')"


@pytest.mark.parametrize("outputs", [1, 2], ids=["mean", "learned variance"])
@pytest.mark.parametrize("channels", [2, 4, 5, 8])
def test_images_that_cannot_be_shown(channels: int, outputs: int, folder: Folder, unconditional: UNetConfig) -> None:
    """Gray with alpha and RGBA would come out as pictures, five channels would fail after all the work."""
    config = replace(unconditional, in_channels=channels, out_channels=outputs * channels)
    message = refusal(folder(config))
    assert f"in_channels = {channels} cannot be shown as pictures (supported: 1, gray, and 3, RGB)" in message
    assert ("latents" in message) == (channels == 4)
    assert ("autoencoder" in message) == (channels == 4)


def test_a_number_of_labels_that_differs_from_the_classes(folder: Folder) -> None:
    root = folder(labels=("boot", "bag"))
    problem = 'labels: 2 names, but num_class_embeds = 4 (allowed: 3, since the last one means "no label")'
    assert refusal(root) == f"{root / CARD}: {problem}"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "_class_name = 'EDMEulerScheduler' is not supported"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0}, "sigma_min = 0.0 is not between 0 and sigma_max = 13"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_max": "x"}, "sigma_max = 'x' is not a number of at least 0"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name = 'FlowMatchEulerDiscreteScheduler' is not"),
        ({"beta_schedule": "exp"}, "beta_schedule = 'exp' is not supported"),
        ({"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction' is not supported"),
        ({"timestep_spacing": "karras"}, "timestep_spacing = 'karras' is not supported"),
        ({"variance_type": "large"}, "variance_type = 'large' is not supported"),
        (
            {"variance_type": "learned_range"},
            "variance_type = 'learned_range' needs a U-Net of out_channels = 2, not 1",
        ),
        ({"rescale_betas_zero_snr": True}, "prediction_type = 'epsilon' with rescale_betas_zero_snr = True"),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 1.5},
            "dynamic_thresholding_ratio = 1.5 is outside 0 … 1",
        ),
        ({"thresholding": True, "sample_max_value": 0.5}, "sample_max_value = 0.5 is not a number of at least 1"),
        ({"thresholding": "yes"}, "thresholding = 'yes' is neither true nor false"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": "low"},
            "lambda_min_clipped = 'low' is not a number",
        ),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is not a list of 1000 numbers between 0 and 1"),
        (
            {"trained_betas": [0.1, 1.0], "num_train_timesteps": 2},
            "trained_betas is not a list of 2 numbers between 0 and",
        ),
        ({"noise_schedule": "linear"}, "key 'noise_schedule' is not understood"),
        ({"beta_start": "small"}, "beta_start = 'small' is not a number"),
        ({"beta_end": 2.5}, "beta_start = 0.0001 and beta_end = 2.5 lead outside 0 … 1"),
        ({"beta_start": float("nan")}, "beta_start = nan is not a number"),
        ({"num_train_timesteps": 0}, "num_train_timesteps = 0 is not a whole number of at least 1"),
        ({"steps_offset": -1}, "steps_offset = -1 is not a whole number of at least 0"),
        ({"clip_sample_range": None}, "clip_sample_range = None is not a number"),
        ({"clip_sample": "yes"}, "clip_sample = 'yes' is neither true nor false"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_scheduler_file_with_an_unsupported_value(folder: Folder, changes: dict[str, Any], cause: str) -> None:
    root = folder()
    path = rewrite(root, SCHEDULER, **changes)
    assert refusal(root).startswith(f"{path}: {cause}")


@pytest.mark.parametrize("file", [CONFIG, SCHEDULER, CARD, INDEX])
@pytest.mark.parametrize("content", ["", "{", "[]", "\ufeff{}"])
def test_a_file_that_is_not_a_json_object(folder: Folder, file: str, content: str) -> None:
    root = folder()
    (root / file).write_text(content, encoding="utf-8")
    assert refusal(root).startswith(f"{root / file}: ")


@pytest.mark.parametrize(
    ("value", "half"),
    [
        # Each value for every second key, and each key with every second value; the other pairs are slow tests.
        pytest.param(value, half, marks=() if half == k % 2 else pytest.mark.slow)
        for k, value in enumerate(["x", None, {}, [1], -1, 2.5, 1e30, float("nan")])
        for half in (0, 1)
    ],
)
def test_no_value_of_any_key_breaks_the_loader(folder: Folder, value: Any, half: int) -> None:
    """Whatever a file holds, the value is refused by name or it is valid."""
    root = folder()
    for file in (CONFIG, SCHEDULER, CARD):
        whole = (root / file).read_text()
        for key in list(json.loads(whole))[half::2]:
            rewrite(root, file, **{key: value})
            try:
                load_model(root)
            except CheckpointError as error:
                message = str(error)
                assert any(word in message for word in (key, "tensor", "shape", "extra")), f"{key}: {message}"
                assert "\n" not in message
            (root / file).write_text(whole)


@pytest.mark.parametrize(
    ("default", "cause"),
    [
        ({"sampler": "dpm_fast"}, "default.sampler = 'dpm_fast' is not offered"),
        ({"steps": 1001}, "default.steps = 1001 is over the 1000 timesteps"),
        ({"steps": 0}, "default.steps: 0 was given (allowed: 1 or more)"),
        ({"guidance_scale": 0.5}, "default.guidance_scale: 0.5 was given (allowed: 1 or more)"),
        ({"sampelr": "ddim"}, "default.sampelr: "),
    ],
)
def test_defaults_that_no_request_could_have(folder: Folder, default: dict[str, Any], cause: str) -> None:
    root = folder()
    path = rewrite(root, CARD, default=default)
    assert refusal(root).startswith(f"{path}: {cause}")
