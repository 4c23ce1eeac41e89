"""Adapter files: what a folder offers, what is refused before a tensor is read, and peft's settings in a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from denoised.model.checkpoints.lora import lora_files
from denoised.model.checkpoints.lora.lora import LoraTarget
from denoised.model.checkpoints.lora.lora_files import check_lora, list_loras, load_lora
from denoised.model.errors import CheckpointError, PlanError
from denoised.model.serving.lora_library import LoraLibrary, select_loras

TARGETS = [
    LoraTarget("unet", "down_blocks.0.attn.to_q", (8, 6)),
    LoraTarget("unet", "conv_in", (8, 4, 3, 3)),
    LoraTarget("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj", (5, 5)),
]
Q = "unet.down_blocks.0.attn.to_q"


def halves(rank: int = 2, width: int = 6) -> dict[str, Tensor]:
    return {f"{Q}.lora_A.weight": torch.ones(rank, width), f"{Q}.lora_B.weight": torch.ones(8, rank)}


def write(path: Path, tensors: dict[str, Tensor], **settings: object) -> Path:
    metadata = {"lora_adapter_metadata": json.dumps(settings["settings"])} if settings else None
    save_file(tensors, path, metadata=metadata)
    return path


def test_a_folder_offers_its_safetensors_files_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.safetensors", halves())
    (tmp_path / "c.pt").write_bytes(b"never opened")
    assert [path.stem for path in list_loras(tmp_path)] == ["a", "b"]
    with pytest.raises(CheckpointError, match="is not a readable folder of adapters"):
        list_loras(tmp_path / "nowhere")


def test_a_file_that_fits_has_a_digest_of_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", halves())
    file = check_lora(path, TARGETS)
    assert (file.name, len(file.digest), file.components) == ("a", 12, {"unet"})
    (layer,) = load_lora(file, TARGETS)
    assert (layer.module, layer.rank, layer.scale, layer.down.dtype) == (
        "down_blocks.0.attn.to_q",
        2,
        1.0,
        torch.float32,
    )


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"unet.lora_alpha": 8}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": 1}}, 0.5),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / math.sqrt(2)),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_alpha_comes_from_the_settings_that_diffusers_stores(
    settings: dict[str, object], scale: float, tmp_path: Path
) -> None:
    file = check_lora(write(tmp_path / "a.safetensors", halves(), settings=settings), TARGETS)
    (layer,) = load_lora(file, TARGETS)
    assert layer.scale == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        (halves(width=7), {}, r"the down tensor of unet.down_blocks.0.attn.to_q is \(2, 7\), not \(2, 6\)"),
        (halves(rank=0), {}, "it has no rank"),
        (halves(rank=2000), {}, r"has rank 2000 \(allowed: 1024\)"),
        ({name: half.to(torch.int32) for name, half in halves().items()}, {}, "is of type I32"),
        ({"unet.nowhere.lora_A.weight": torch.ones(2, 6)}, {}, "is for a module that this model's unet does not have"),
        ({f"{Q}.lora_A.weight": torch.tensor(1.0)}, {}, "has no up tensor"),
        (halves() | {f"{Q}.alpha": torch.ones(3)}, {}, r"alpha of unet.* is \(3,\), not one number"),
        (halves(), {"unet.use_dora": True}, "this is a DoRA adapter"),
        (halves(), {"unet.lora_alpha": "8"}, "lora_alpha is '8', not a number"),
        (halves(), {"unet.alpha_pattern": [1]}, "alpha_pattern is not an object"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    tensors: dict[str, Tensor], settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.safetensors", tensors, settings=settings)
    with pytest.raises(CheckpointError, match=message) as refusal:
        check_lora(path, TARGETS)
    assert str(path) in str(refusal.value)


def test_what_is_no_safetensors_file_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_files, "MAX_BYTES", 1000)
    write(tmp_path / "good.safetensors", halves())
    write(tmp_path / "large.safetensors", halves(rank=100))
    (tmp_path / "pickle.safetensors").write_bytes(b"PK\x03\x04 a zip file")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:60])
    (tmp_path / " space.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes())
    found = select_loras(tmp_path, TARGETS)
    assert [file.name for file in found.fitting] == ["good"]
    reasons = [
        "cannot be named in a request",
        "is not a regular file",
        "allowed: 1000",
        "is a pickle",
        "not a complete",
    ]
    assert len(found.problems) == len(reasons)
    assert all(reason in problem for reason, problem in zip(reasons, found.problems, strict=True))


def test_a_file_that_changes_after_the_start_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", halves())
    library = LoraLibrary([check_lora(path, TARGETS)], TARGETS)
    write(path, {name: 2 * half for name, half in halves().items()})
    with pytest.raises(CheckpointError, match="has changed since the worker started"):
        library.weights([{"a": 1.0}])
    bad = write(tmp_path / "nan.safetensors", {name: half / 0 for name, half in halves().items()})
    with pytest.raises(CheckpointError, match="holds NaN or infinite values"):
        load_lora(check_lora(bad, TARGETS), TARGETS)


def test_the_weights_of_a_batch_are_a_row_each(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.safetensors", halves()) for name in ("b", "a")]
    library = LoraLibrary([check_lora(path, TARGETS) for path in paths], TARGETS)
    requests = [{}, {"b": 0.5}, {"a": -1.0, "b": 2.0}]
    weights = library.weights(requests)
    assert weights.tolist() == [[0.0, 0.0], [0.0, 0.5], [-1.0, 2.0]]
    assert library.rows(weights) == requests
    assert (library.names("unet"), library.names("text_encoder")) == (["a", "b"], [])
    with pytest.raises(PlanError, match=r"loras: 'c' is not offered \(offered: a, b\)"):
        library.weights([{"c": 1.0}])
