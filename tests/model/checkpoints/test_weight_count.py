"""How much memory the weights of a folder take."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from denoised.model.checkpoints.weight_count import weight_bytes
from denoised.model.errors import CheckpointError
from denoised.model.serving.loading import ZOO, load_model


def test_the_weights_of_a_folder_are_counted_as_they_are_served() -> None:
    parameters = sum(each.numel() for each in load_model(ZOO / "digits").unet.parameters())
    assert weight_bytes(ZOO / "digits") == 4 * parameters
    assert weight_bytes(ZOO / "digits", "bfloat16") == 2 * parameters


def test_all_parts_of_a_pipeline_count() -> None:
    parts = [ZOO / "emoji" / name for name in ("unet", "vae", "text_encoder")]
    assert weight_bytes(ZOO / "emoji") == sum(map(weight_bytes, parts)) > max(map(weight_bytes, parts)) > 0


def test_a_folder_without_weights_weighs_nothing_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert weight_bytes(tmp_path) == weight_bytes(tmp_path / "missing") == 0
    shutil.copytree(ZOO / "digits", tmp_path / "digits")
    (tmp_path / "digits" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08" + bytes(7) + b"{broken}")
    with pytest.raises(CheckpointError, match="its header cannot be read"):
        weight_bytes(tmp_path / "digits")
