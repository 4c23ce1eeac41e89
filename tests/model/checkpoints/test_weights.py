"""Weights in every form that public folders use; pickles never."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from denoised.model.checkpoints.weight_files import CONVERT
from denoised.model.errors import CheckpointError
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.loading import load_model

Folder = Callable[..., Path]
NAME = "diffusion_pytorch_model"
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
OLD_MODULES = {"mid_block": "mid", "down_blocks": "downsample_blocks", "up_blocks": "upsample_blocks"}


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / f"unet/{NAME}.safetensors")


def assert_loads(folder: Path, expected: dict[str, Tensor]) -> None:
    state = load_model(folder).unet.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the names of diffusers' first releases."""
    renamed = {}
    for key, value in tensors.items():
        for current, old in OLD_ATTENTION.items():
            if ".attentions." in key:
                key = key.replace(f".{current}.", f".{old}.")
        first, _, rest = key.partition(".")
        renamed[f"{OLD_MODULES.get(first, first)}.{rest}"] = value
    return renamed


def test_old_tensor_names_are_understood(folder: Folder) -> None:
    root = folder()
    expected = weights_of(root)
    old = old_names(expected)
    assert {"mid.attentions.0.query.weight", "upsample_blocks.0.attentions.0.proj_attn.bias"} < old.keys()
    save_file(old, root / f"unet/{NAME}.safetensors")
    assert_loads(root, expected)


def test_diffusers_reads_old_attention_names_the_same_way(folder: Folder, unconditional: UNetConfig) -> None:
    root = folder(unconditional)
    tensors = weights_of(root)
    for key in [key for key in tensors if ".attentions." in key]:
        for current, old in OLD_ATTENTION.items():
            if f".{current}." in key:
                tensors[key.replace(f".{current}.", f".{old}.")] = tensors.pop(key)
    save_file(tensors, root / f"unet/{NAME}.safetensors", metadata={"format": "pt"})
    theirs = UNet2DModel.from_pretrained(root, subfolder="unet", low_cpu_mem_usage=False).state_dict()
    assert_loads(root, dict(theirs))


def test_a_tensor_stored_under_both_names_counts_once(folder: Folder) -> None:
    root = folder()
    expected = weights_of(root)
    twice = {"down_blocks.0.downsamplers.0.op.weight": expected["down_blocks.0.downsamplers.0.conv.weight"].clone()}
    save_file({**expected, **twice}, root / f"unet/{NAME}.safetensors")
    assert_loads(root, expected)


def test_both_names_of_a_tensor_with_different_values_are_refused(folder: Folder) -> None:
    root = folder()
    path = root / f"unet/{NAME}.safetensors"
    tensors = load_file(path)
    tensors["down_blocks.0.downsamplers.0.op.weight"] = tensors["down_blocks.0.downsamplers.0.conv.weight"] + 1
    save_file(tensors, path)
    message = refusal(root)
    assert message.startswith(f"{path}: holds 'down_blocks.0.downsamplers.0.")
    assert message.endswith("two names of one tensor, with different values")


def test_shards_are_merged(folder: Folder) -> None:
    root = folder()
    expected = weights_of(root)
    unet = UNet2DModel.from_pretrained(root, subfolder="unet")
    (root / f"unet/{NAME}.safetensors").unlink()
    unet.save_pretrained(root / "unet", max_shard_size="6KB")
    assert len(list((root / "unet").glob("*.safetensors"))) > 1
    assert_loads(root, expected)


def test_a_shard_that_is_missing_or_in_another_folder_is_refused(folder: Folder) -> None:
    root = folder()
    whole = root / f"unet/{NAME}.safetensors"
    index = root / f"unet/{NAME}.safetensors.index.json"
    whole.rename(root / "unet/one.safetensors")
    for shard, expected in (
        ("two.safetensors", f"{root / 'unet/two.safetensors'}: missing"),
        (
            "../one.safetensors",
            f"{index}: weight_map names '../one.safetensors', not a safetensors file in the same folder",
        ),
        ("one.bin", f"{index}: weight_map names 'one.bin', not a safetensors file in the same folder"),
    ):
        index.write_text(json.dumps({"weight_map": {"conv_in.bias": shard}}))
        assert refusal(root) == expected
    index.write_text(json.dumps({"weight_map": ["one.safetensors"]}))
    assert refusal(root) == f"{index}: weight_map is not an object of tensor names and file names"


def test_an_fp16_variant_is_served_in_float32(folder: Folder) -> None:
    root = folder()
    path = root / f"unet/{NAME}.safetensors"
    halves = {key: value.half() for key, value in load_file(path).items()}
    path.unlink()
    save_file(halves, root / f"unet/{NAME}.fp16.safetensors")
    assert_loads(root, {key: value.float() for key, value in halves.items()})


def test_integer_weights_are_refused(folder: Folder) -> None:
    root = folder()
    path = root / f"unet/{NAME}.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"] = tensors["conv_in.bias"].to(torch.int64)
    save_file(tensors, path)
    assert refusal(root) == f"{path}: 'conv_in.bias' is of type I64 (supported: F64, F32, F16, BF16)"


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (self.file,))


def write_malicious_pickle(path: Path, trace: Path) -> None:
    """A pickle that runs code when it is read: bare, or in a zip file as torch.save writes it."""
    content = pickle.dumps(Canary(trace), protocol=2)
    if path.suffix == ".pkl":
        path.write_bytes(content)
        return
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)


@pytest.mark.parametrize("name", [f"{NAME}.bin", "model.ckpt", "model.pt", "model.pth", "weights.pkl"])
def test_a_pickle_is_refused_by_name_and_never_opened(folder: Folder, tmp_path: Path, name: str) -> None:
    root, trace = folder(), tmp_path / "trace"
    (root / f"unet/{NAME}.safetensors").unlink()
    write_malicious_pickle(root / "unet" / name, trace)
    assert refusal(root) == f"{root / 'unet' / name}: {CONVERT}"
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
def test_a_pickle_named_safetensors_is_detected(folder: Folder, tmp_path: Path, suffix: str) -> None:
    root, trace = folder(), tmp_path / "trace"
    path = root / f"unet/{NAME}.safetensors"
    write_malicious_pickle(tmp_path / f"malice{suffix}", trace)
    (tmp_path / f"malice{suffix}").replace(path)
    assert refusal(root) == f"{path}: {CONVERT}"
    assert not trace.exists()


def test_unpickling_the_canary_of_these_tests_creates_its_file(tmp_path: Path) -> None:
    write_malicious_pickle(tmp_path / "malice.pkl", tmp_path / "trace")
    pickle.loads((tmp_path / "malice.pkl").read_bytes())
    assert (tmp_path / "trace").exists()


def test_a_pickle_next_to_safetensors_is_ignored(folder: Folder, tmp_path: Path) -> None:
    root = folder()
    write_malicious_pickle(root / f"unet/{NAME}.bin", tmp_path / "trace")
    assert_loads(root, weights_of(root))
    assert not (tmp_path / "trace").exists()


def move_to_root(pipeline: Path, folder: Path, scheduler: str) -> Path:
    """Move the files of a pipeline to the layout of the google/ddpm-* repositories."""
    (folder / scheduler).parent.mkdir(parents=True)
    for old, new in (
        ("unet/config.json", "config.json"),
        (f"unet/{NAME}.safetensors", f"{NAME}.safetensors"),
        ("scheduler/scheduler_config.json", scheduler),
        ("model_index.json", "model_index.json"),
    ):
        (pipeline / old).rename(folder / new)
    return folder


@pytest.mark.parametrize("scheduler", ["scheduler_config.json", "scheduler/scheduler_config.json"])
def test_a_model_at_the_root_of_its_folder_loads(
    folder: Folder, tmp_path: Path, unconditional: UNetConfig, scheduler: str
) -> None:
    root = folder(unconditional, variance_type="fixed_large", _class_name="DDPMScheduler")
    expected = weights_of(root)
    moved = move_to_root(root, tmp_path / "google", scheduler)
    assert_loads(moved, expected)
    assert load_model(moved).grid.variance_type == "fixed_large"
    if scheduler == "scheduler_config.json":
        theirs = DDPMPipeline.from_pretrained(moved)
        assert isinstance(theirs.scheduler, DDPMScheduler)
        assert all(torch.equal(value, expected[key]) for key, value in theirs.unet.state_dict().items())


@pytest.mark.parametrize("missing", ["scheduler_config.json", f"{NAME}.safetensors"])
def test_a_file_missing_at_the_root_is_named(folder: Folder, tmp_path: Path, missing: str) -> None:
    moved = move_to_root(folder(), tmp_path / "google", "scheduler_config.json")
    (moved / missing).unlink()
    assert refusal(moved) == f"{moved / missing}: missing"


def test_a_config_with_old_keys_means_the_same(folder: Folder) -> None:
    root = folder()
    expected = load_model(root).unet.config
    path = root / "unet/config.json"
    current = json.loads(path.read_text())
    old = {
        "image_size": current.pop("sample_size"),
        "num_res_blocks": current.pop("layers_per_block"),
        "block_channels": current.pop("block_out_channels"),
        "down_blocks": [f"UNetRes{kind}" for kind in current.pop("down_block_types")],
        "up_blocks": [f"UNetRes{kind}" for kind in current.pop("up_block_types")],
        "downscale_freq_shift": current.pop("freq_shift"),
        "resnet_num_groups": current.pop("norm_num_groups"),
        "resnet_act_fn": current.pop("act_fn"),
        "resnet_eps": current.pop("norm_eps"),
        "num_head_channels": current.pop("attention_head_dim"),
    }
    path.write_text(json.dumps({**current, **old}))
    assert load_model(root).unet.config == expected
