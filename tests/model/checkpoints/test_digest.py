"""The digest of a model: equal for folders that make the same pictures, different for all others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from denoised.model.serving.loading import load_model
from denoised.worker.model_loading import load_models

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Folder = Callable[..., Path]


def digest(folder: Path) -> str:
    return load_model(folder).card.digest


def rewrite(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def one_more_bit(weights: dict[str, torch.Tensor]) -> None:
    weights["conv_in.bias"].view(torch.int32)[0] ^= 1


def swap_tensors(weights: dict[str, torch.Tensor]) -> None:
    names = ("down_blocks.0.resnets.0.conv1.bias", "down_blocks.0.resnets.0.conv2.bias")
    weights[names[0]], weights[names[1]] = weights[names[1]].clone(), weights[names[0]].clone()


CHANGES: dict[str, Callable[[Path], None]] = {
    "one bit of a weight": lambda folder: change_weights(folder, one_more_bit),
    "two tensors swapped": lambda folder: change_weights(folder, swap_tensors),
    "the noise schedule": lambda folder: rewrite(folder, "scheduler/scheduler_config.json", beta_end=0.03),
    "the prediction type": lambda folder: rewrite(
        folder, "scheduler/scheduler_config.json", prediction_type="v_prediction"
    ),
    "the scheduler's class": lambda folder: rewrite(
        folder, "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler"
    ),
    "a setting of the network": lambda folder: rewrite(folder, "unet/config.json", norm_eps=1e-3),
    "the labels' order": lambda folder: rewrite(folder, "model_card.json", labels=["bag", "boot", "coat"]),
    "learned noise levels": lambda folder: rewrite(
        folder, "model_card.json", learned_levels=[{"sampler": "euler", "sigmas": [9, 1]}]
    ),
    "the null class": lambda folder: rewrite(folder, "model_card.json", unconditional=False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_picture_changes_the_digest(change: str, folder: Folder) -> None:
    path = folder(labels=("boot", "bag", "coat"))
    before = digest(path)
    assert len(before) == 12
    CHANGES[change](path)
    assert digest(path) != before


def test_what_changes_no_picture_leaves_the_digest(folder: Folder, tmp_path: Path) -> None:
    path = folder(labels=("boot", "bag", "coat"))
    before = digest(path)
    rewrite(path, "unet/config.json", _diffusers_version="0.1", _name_or_path="elsewhere")
    rewrite(path, "model_card.json", description="Boots", default={"steps": 7})
    assert digest(path) == before
    assert digest(shutil.copytree(path, tmp_path / "renamed")) == before
    weights = load_file(path / WEIGHTS)
    halves = {name: value.half() for name, value in weights.items()}
    save_file({name: value.float() for name, value in halves.items()}, path / WEIGHTS)
    rounded = digest(path)
    save_file(halves, path / WEIGHTS)
    assert digest(path) == rounded != before, "the same values in half precision are the same model"


def test_a_workers_numerics_name_the_digest(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoised.worker.model_loading.bundled", list)
    path = folder()
    cards = []
    for _ in range(2):
        cards.append(load_models([path], device="cpu", max_images=1)["boots"].card)
        change_weights(path, one_more_bit)
    assert [card.numerics.split("/")[-2] for card in cards] == [f"model-{card.digest}" for card in cards]
    assert cards[0].numerics != cards[1].numerics
