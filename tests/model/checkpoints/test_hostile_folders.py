"""Folders that anyone may have made: refused in one line, within two seconds, before anything is allocated."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from denoised.model.checkpoints import __main__ as check
from denoised.model.errors import CheckpointError
from denoised.model.serving.loading import load_model

CONFIG, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
MIB = 1024**2
SECONDS = 2.0  # of this process, whatever else the machine does


@pytest.fixture
def refusal(folder: Callable[..., Path]) -> Callable[..., str]:
    """`refusal(change)`: the message with which a changed folder is refused."""

    def refusal(change: Callable[[Path], object]) -> str:
        root = folder()
        change(root)
        started, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError) as caught:
            load_model(root)
        message = str(caught.value)
        assert time.process_time() - started < SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 1024  # KiB on Linux
        assert "\n" not in message
        assert len(message) < 1000
        return message

    return refusal


def changed(file: str, **changes: Any) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        path = root / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


BLOCKS = {"down_block_types": ["DownBlock2D"] * 10**5, "up_block_types": ["UpBlock2D"] * 10**5}


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 10**6},
        {"layers_per_block": 17},
        {"block_out_channels": [8] * 10**5, **BLOCKS},
        {"block_out_channels": [8] * 10**5},
        {"block_out_channels": [8, 2**31]},
        {"block_out_channels": [8, 10**400]},
        {"in_channels": 2**31, "out_channels": 2**31},
        {"in_channels": 10**400},
        {"norm_num_groups": 2**40},
        {"attention_head_dim": 2**31},
        {"time_embedding_dim": 2**31},
        {"num_class_embeds": 10**9},
        {"time_embedding_type": "learned", "num_train_timesteps": 10**9},
        {"sample_size": 8192},
        {"sample_size": [8, 2**31]},
        {"sample_size": 10**400},
        {"sample_size": float("nan")},
        {"sample_size": [8] * 10**5},
        {"norm_eps": 10**400},
        {"norm_eps": float("nan")},
        {"freq_shift": -(10**400)},
        {"dropout": float("inf")},
        {"act_fn": "x" * MIB},
        {"x" * MIB: 1},
        {"_class_name": ["x"] * 10**5},
    ],
    ids=lambda changes: next(iter(changes))[:20],
)
def test_a_network_out_of_all_proportion(refusal: Callable[..., str], changes: dict[str, Any]) -> None:
    assert CONFIG in refusal(changed(CONFIG, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": 10**400},
        {"num_train_timesteps": 100_001},
        {"steps_offset": 10**400},
        {"steps_offset": 10**9},
        {"clip_sample_range": 10**400},
        {"beta_end": 10**400},
        {"trained_betas": [0.5] * 10**5},
        {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 10**9},
        {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 10**400},
        {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": 10**400},
        {"prediction_type": "x" * MIB},
    ],
    ids=lambda changes: list(changes)[-1],
)
def test_a_schedule_out_of_all_proportion(refusal: Callable[..., str], changes: dict[str, Any]) -> None:
    assert SCHEDULER in refusal(changed(SCHEDULER, **changes))


def replaced(file: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / file).unlink()
        make(root / file)

    return change


@pytest.mark.parametrize("file", [CONFIG, SCHEDULER, WEIGHTS, "model_card.json", "model_index.json"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_something_else_than_a_file(refusal: Callable[..., str], file: str, kind: str) -> None:
    make: dict[str, Callable[[Path], object]] = {
        "fifo": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
    }
    assert refusal(replaced(file, make[kind])).endswith(f"{file}: is not a regular file")


@pytest.mark.parametrize("file", [CONFIG, SCHEDULER, "model_card.json", "model_index.json"])
@pytest.mark.parametrize("content", [b'{"a": "' + b"x" * 90 * MIB, b"[" * 3 * MIB, b'{"a":' * 10**5, b"1" * MIB])
def test_a_config_that_is_huge_or_deep(refusal: Callable[..., str], file: str, content: bytes) -> None:
    assert file in refusal(lambda root: (root / file).write_bytes(content))


@pytest.mark.parametrize("file", [CONFIG, SCHEDULER, "model_card.json", "model_index.json"])
def test_a_key_that_occurs_twice(refusal: Callable[..., str], file: str) -> None:
    """Readers would take one value or the other: labels, for example."""
    content = '{"a": {"labels": ["x"], "labels": ["y"]}}'
    assert "the key 'labels' occurs twice" in refusal(lambda root: (root / file).write_text(content))


@pytest.mark.parametrize("header", [90 * MIB, 5 * MIB, 2**63, 2**64 - 1])
def test_weights_whose_header_is_out_of_all_proportion(refusal: Callable[..., str], header: int) -> None:
    def change(root: Path) -> None:
        with (root / WEIGHTS).open("wb") as file:
            file.write(header.to_bytes(8, "little") + b'{"a":{"dtype":"F32"')
            file.truncate(91 * MIB)  # sparse

    assert "header" in refusal(change)


def test_an_index_of_many_shards(refusal: Callable[..., str]) -> None:
    index = {"weight_map": {f"t{k}": f"{k}.safetensors" for k in range(10_000)}}

    def change(root: Path) -> None:
        (root / WEIGHTS).unlink()
        (root / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    assert "names 10000 files" in refusal(change)


def test_a_network_larger_than_the_memory(refusal: Callable[..., str]) -> None:
    wide = {"block_out_channels": [16_384] * 8, "layers_per_block": 16, "sample_size": 1024}
    kinds = {"down_block_types": ["DownBlock2D"] * 8, "up_block_types": ["UpBlock2D"] * 8}
    assert "GiB of memory" in refusal(changed(CONFIG, **wide, **kinds))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Callable[..., Path], value: float) -> None:
    from safetensors.torch import load_file, save_file

    root = folder()
    tensors = load_file(root / WEIGHTS)
    tensors["conv_out.bias"][0] = value
    save_file(tensors, root / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        load_model(root)
    assert str(caught.value) == f"{root / WEIGHTS}: 'conv_out.bias' holds NaN or infinite values"


def test_a_path_that_is_no_model_folder_says_what_to_name(tmp_path: Path, folder: Callable[..., Path]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    (tmp_path / "weights.safetensors").touch()
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "pipe")
    expected = {
        "google/ddpm-cat-256": "no such model folder",
        tmp_path / "gone": "no such model folder",
        tmp_path / "weights.safetensors": "is a file, not a model folder: name a folder with unet/ and scheduler/",
        tmp_path / "fifo" / "pipe": "is a file, not a model folder",
        tmp_path / "empty": "is empty: a model folder contains unet/ and scheduler/",
        tmp_path / "other": "is not a model folder: it contains neither model_index.json nor unet/ nor config.json",
        tmp_path / ("x" * 300): "cannot be read (File name too long)",
        "a\0b": "no such model folder",
        folder() / "unet": "is a part of a model folder: name the folder that contains it",
    }
    for path, message in expected.items():
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert str(caught.value).partition(": ")[2].startswith(message), caught.value


def test_a_stable_diffusion_folder_is_named_as_such(folder: Callable[..., Path]) -> None:
    root = folder()
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"]}
    (root / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is a text-to-image pipeline, which this command does not take"):
        load_model(root)


def test_serve_refuses_most_of_it_before_it_starts_anything(folder: Callable[..., Path]) -> None:
    """Without torch."""
    root = folder()
    check.main([str(root)])
    for change in (
        changed(CONFIG, layers_per_block=10**6),
        changed(CONFIG, sample_size=8192),
        replaced("model_card.json", os.mkfifo),
        replaced(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
    ):
        change(root)
        with pytest.raises(SystemExit) as caught:
            check.main([str(root)])
        assert "\n" not in str(caught.value.code)
        root = folder()


def test_a_symlinked_folder_keeps_the_name_that_was_given(folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "shoes").symlink_to(folder())
    assert load_model(tmp_path / "shoes").card.name == "shoes"
    assert load_model(tmp_path / "boots" / "unet" / "..").card.name == "boots"


@pytest.mark.parametrize("name", ["a\nb", "\udcff", "a\x1b[31m", "\u202e"])
def test_a_name_that_cannot_be_printed_is_refused(folder: Callable[..., Path], tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(folder())
    with pytest.raises(CheckpointError, match=r"is not printable|is not UTF-8"):
        load_model(tmp_path / name)
