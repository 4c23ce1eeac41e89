"""Text pipelines and adapters that anyone may have made: refused in one line, within two seconds, in little memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from denoised.model.checkpoints import __main__ as check
from denoised.model.errors import CheckpointError
from denoised.model.serving.loading import load_for_serving
from tests.text_pipelines import build_xl_pipeline, save_pipeline, write_vocabulary

UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, INDEX, CARD = "scheduler/scheduler_config.json", "model_index.json", "model_card.json"
VOCABULARY, MERGES, SETTINGS = "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"
WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
MIB = 1024**2
SECONDS = 2.0  # of this process, whatever else the machine does
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pipelines: sd, whose tokenizer is in `vocab.json` and `merges.txt`, and xl."""
    root = tmp_path_factory.mktemp("pipelines")
    save_pipeline(root / "sd")
    (root / "sd" / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    write_vocabulary(root / "sd" / "tokenizer")
    save_pipeline(root / "xl", build=build_xl_pipeline)
    return root


@pytest.fixture
def refusal(pipelines: Path, tmp_path: Path) -> Callable[..., str]:
    """`refusal(change, kind="sd")`: the message with which a changed folder is refused."""

    def refusal(change: Change, kind: str = "sd") -> str:
        root = tmp_path / kind
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(pipelines / kind, root)
        change(root)
        started, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError) as caught:
            load_for_serving(root)
        message = str(caught.value)
        assert time.process_time() - started < SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 150 * 1024  # KiB on Linux
        assert "\n" not in message
        assert len(message) < 1500
        return message

    return refusal


def changed(file: str, **changes: Any) -> Change:
    def change(root: Path) -> None:
        path = root / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **changes}))

    return change


def written(file: str, content: bytes, size: int | None = None) -> Change:
    """The content, then zeros that take no room on the disk."""

    def change(root: Path) -> None:
        with (root / file).open("wb") as out:
            out.write(content)
            if size is not None:
                out.truncate(size)

    return change


LEVELS = {"block_out_channels": [8] * 10**5}
DEEP_UNET = {
    "block_out_channels": [16] * 12,
    "down_block_types": ["CrossAttnDownBlock2D"] * 12,
    "up_block_types": ["CrossAttnUpBlock2D"] * 12,
    "layers_per_block": 16,
    "transformer_layers_per_block": 32,
}
VAE_LEVELS = {"down_block_types": ["DownEncoderBlock2D"] * 2000, "up_block_types": ["UpDecoderBlock2D"] * 2000}


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        (UNET, {"layers_per_block": 10**6}),
        (UNET, {"layers_per_block": [10**6, 1]}),
        (UNET, {"transformer_layers_per_block": 10**6}),
        (UNET, {"transformer_layers_per_block": [[10**6], [1]], "reverse_transformer_layers_per_block": [[1], [1]]}),
        (UNET, LEVELS),
        (UNET, DEEP_UNET),
        (UNET, {"block_out_channels": [8, 2**31]}),
        (UNET, {"block_out_channels": [8, 10**400]}),
        (UNET, {"cross_attention_dim": 2**40}),
        (UNET, {"time_embedding_dim": 2**40}),
        (UNET, {"addition_time_embed_dim": 2**40}),
        (UNET, {"projection_class_embeddings_input_dim": 10**30}),
        (UNET, {"sample_size": [8] * 10**5}),
        (UNET, {"sample_size": [8, 8, 8]}),
        (UNET, {"sample_size": "x" * MIB}),
        (UNET, {"norm_eps": 10**400}),
        (UNET, {"mid_block_scale_factor": float("nan")}),
        (UNET, {"act_fn": "x" * (MIB // 2)}),
        (UNET, {"x" * (MIB // 2): 1}),
        (VAE, {"layers_per_block": 10**6}),
        (VAE, {**VAE_LEVELS, "block_out_channels": [8] * 2000}),
        (VAE, {"latent_channels": 10**400}),
        (VAE, {"scaling_factor": 10**400}),
        (VAE, {"scaling_factor": 1e-320}),
        (VAE, {"latents_mean": [0.0] * 4, "latents_std": [0.0] * 4}),
        (VAE, {"latents_mean": [0.0] * 10**5, "latents_std": [1.0] * 10**5}),
        (VAE, {"sample_size": 10**400}),
        (TEXT, {"num_hidden_layers": 10**6}),
        (TEXT, {"num_hidden_layers": 10**400}),
        (TEXT, {"vocab_size": 10**400}),
        (TEXT, {"projection_dim": 2**40}),
        (TEXT, {"layer_norm_eps": 10**400}),
        (TEXT, {"hidden_act": "x" * (MIB // 2)}),
        (SCHEDULER, {"steps_offset": 1000}),
        (SCHEDULER, {"beta_schedule": ["linear"] * 10**5}),
        (SCHEDULER, {"beta_start": 1e-300, "beta_end": 1e-299}),
        (SCHEDULER, {"_class_name": "LCMScheduler", "timestep_scaling": 0}),
        (SCHEDULER, {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": 50.0}),
        (INDEX, {"_class_name": ["StableDiffusionPipeline"]}),
        (INDEX, {"_class_name": "StableDiffusionPipeline" + "x" * (MIB // 2)}),
        (INDEX, {"p" * (MIB // 2): ["a", "b"]}),
        (SETTINGS, {"model_max_length": 10**400}),
        (SETTINGS, {"bos_token": "x" * (MIB // 2)}),
        (SETTINGS, {"bos_token": ["x"] * 10**5}),
        (CARD, {"latent_rgb": [[0, 0, 0]] * 10**4}),
        (CARD, {"latent_rgb": [[float("inf"), 0, 0]] * 4}),
        (CARD, {"x" * (MIB // 2): 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value))[:20],
)
def test_settings_out_of_all_proportion(refusal: Callable[..., str], file: str, changes: dict[str, Any]) -> None:
    assert file.split("/")[0] in refusal(changed(file, **changes))


def test_the_second_encoder_of_xl_is_bounded_too(refusal: Callable[..., str]) -> None:
    assert "text_encoder_2/config.json: num_hidden_layers" in refusal(
        changed("text_encoder_2/config.json", num_hidden_layers=10**6), "xl"
    )


PARTS = (INDEX, UNET, VAE, TEXT, SCHEDULER, CARD, VOCABULARY, MERGES, SETTINGS, *WEIGHTS)


@pytest.mark.parametrize("file", PARTS)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_something_else_than_a_file(refusal: Callable[..., str], file: str, kind: str) -> None:
    def change(root: Path) -> None:
        path = root / file
        path.unlink(missing_ok=True)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()

    assert refusal(change).endswith(f"{file}: is not a regular file")


@pytest.mark.parametrize("file", [INDEX, UNET, VAE, TEXT, SCHEDULER, CARD, VOCABULARY, SETTINGS])
@pytest.mark.parametrize("content", [b"[" * MIB, b'{"a":' * 10**4, b"\xff\xfe" * 1000, b'{"_x": [' + b"[]," * 30_000])
def test_a_file_that_is_no_json_or_deep(refusal: Callable[..., str], file: str, content: bytes) -> None:
    assert file in refusal(written(file, content))


@pytest.mark.parametrize("file", PARTS)
def test_a_sparse_file_of_a_terabyte(refusal: Callable[..., str], file: str) -> None:
    start = (2**39).to_bytes(8, "little") + b'{"' if file in WEIGHTS else b'{"'
    assert file in refusal(written(file, start, 2**40))


def test_a_vocabulary_without_bounds(refusal: Callable[..., str], pipelines: Path) -> None:
    ids = json.loads((pipelines / "sd" / VOCABULARY).read_text())
    cases = [
        written(VOCABULARY, json.dumps({str(number): number for number in range(300_000)}).encode()),
        changed(VOCABULARY, a=4_294_967_295),
        changed(VOCABULARY, a=-1),
        changed(VOCABULARY, a="b"),
        changed(VOCABULARY, z=len(ids) + 10**4),
        written(MERGES, b"#version: 0.2\n" + b"a b\n" * 300_000),
        written(MERGES, b"a b\n" * 3 * MIB),
        changed(SETTINGS, eos_token="not in it"),
        lambda root: shutil.rmtree(root / "tokenizer"),
    ]
    for case in cases:
        assert "tokenizer" in refusal(case)


MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def adapter(rank: int = 4, metadata: object = None, name: str = MODULE) -> Change:
    """A file of one layer of an adapter, whose tensors are zeros and take no room on the disk."""
    size = rank * 16 * 4
    header: dict[str, Any] = {
        f"{name}.lora_A.weight": {"dtype": "F32", "shape": [rank, 16], "data_offsets": [0, size]},
        f"{name}.lora_B.weight": {"dtype": "F32", "shape": [16, rank], "data_offsets": [size, 2 * size]},
    }
    if metadata is not None:
        header["__metadata__"] = {"lora_adapter_metadata": json.dumps(metadata)}
    text = json.dumps(header).encode()
    return written("a.safetensors", struct.pack("<Q", len(text)) + text, 8 + len(text) + 2 * size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (adapter(rank=10**6), "has rank 1000000 (allowed: 1024)"),
        (adapter(rank=10**9), "(allowed: 4294967296)"),
        (adapter(name="unet." + "x" * MIB), "is for a module that this model's unet does not have"),
        (adapter(metadata={"unet.lora_alpha": 10**400}), "unet.lora_alpha is "),
        (adapter(metadata={"unet.lora_alpha": float("nan")}), "unet.lora_alpha is nan, not a number"),
        (adapter(metadata={"x": [[]] * 10**5}), "lora_adapter_metadata is too large"),
        (adapter(metadata={"x" * MIB + ".use_dora": True}), "lora_adapter_metadata is too large"),
        (adapter(metadata={"x" * 10**5 + ".use_dora": True}), "this is a DoRA adapter"),
    ],
)
def test_an_adapter_out_of_all_proportion(pipelines: Path, tmp_path: Path, change: Change, message: str) -> None:
    """It is left out, and the model is served without it."""
    change(tmp_path)
    started = time.process_time()
    served = load_for_serving(pipelines / "sd", loras=tmp_path)
    assert time.process_time() - started < SECONDS
    assert served.model.card.loras == []
    (problem,) = served.lora_problems
    assert message in problem
    assert "\n" not in problem
    assert len(problem) < 500


def test_many_patterns_of_an_adapter_take_no_time(pipelines: Path, tmp_path: Path) -> None:
    patterns = {f"to_{number}": 1 for number in range(40_000)}
    adapter(metadata={"unet.alpha_pattern": {**patterns, "attn1.to_q": 2, "to_q": 3}})(tmp_path)
    started = time.process_time()
    assert [each.name for each in load_for_serving(pipelines / "sd", loras=tmp_path).model.card.loras] == ["a"]
    assert time.process_time() - started < SECONDS


def test_serve_refuses_the_files_of_a_text_pipeline_before_it_starts_anything(pipelines: Path, tmp_path: Path) -> None:
    """Without torch."""
    check.main([str(pipelines / "sd")])
    for number, change in enumerate(
        (
            written(VOCABULARY, b"{", 500 * MIB),
            written(WEIGHTS[2], (2**39).to_bytes(8, "little") + b"{", 2**40),
            changed(INDEX, _class_name={"a": 1}),
            changed(INDEX, _x=[[]] * 50_000),
            lambda root: shutil.rmtree(root / "tokenizer"),
        )
    ):
        root = tmp_path / str(number)
        shutil.copytree(pipelines / "sd", root)
        change(root)
        started = time.process_time()
        with pytest.raises(SystemExit) as caught:
            check.main([str(root)])
        assert "\n" not in str(caught.value.code)
        assert time.process_time() - started < SECONDS
