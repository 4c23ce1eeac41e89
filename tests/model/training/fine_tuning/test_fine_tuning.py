"""`denoised fine-tune`: the loss falls, a resumed run is exact, and the results are served and load in diffusers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from denoised.model.__main__ import app
from denoised.model.errors import DataError
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import CONTEXT
from denoised.model.serving.loading import load_for_serving
from denoised.model.training.datasets.captioned_folder import read_captioned_folder
from tests.text_pipelines import PROMPT, build_xl_pipeline, save_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and peft

CAPTIONS = {"red": (220, 40, 40), "green": (60, 170, 80), "blue": (50, 100, 220), "white": (255, 255, 255)}
TINY = ("--batch", "4", "--warmup", "0", "--precision", "float32", "--threads", "1", "--ema-decay", "0.9")
T = 300.0


def fine_tune(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["fine-tune", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, a pipeline, and `pictures`, four of one color each with a text file next to it."""
    folder = tmp_path_factory.mktemp("tuning")
    save_pipeline(folder / "model")
    (folder / "pictures").mkdir()
    for name, color in CAPTIONS.items():
        Image.new("RGB", (24, 20), color).save(folder / "pictures" / f"{name}.png")
        (folder / "pictures" / f"{name}.txt").write_text(f"a {name} square\n")
    return folder


def run(folder: Path, out: Path, *options: object) -> Path:
    fine_tune("--model", folder / "model", "--data", folder / "pictures", "--out", out, *TINY, *options)
    return out


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """A run of an adapter."""
    return run(folder, folder / "squares", "--images", 120, "--lora-rank", 4, "--learning-rate", 0.02)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of the whole U-Net."""
    return run(folder, folder / "whole", "--images", 120, "--learning-rate", 0.003)


@pytest.fixture(scope="module")
def text_adapter(folder: Path) -> Path:
    """A run of an adapter of U-Net and text encoder."""
    return run(folder, folder / "words", "--images", 120, "--learning-rate", 0.02, *_options("text adapter"))


@pytest.fixture(scope="module")
def text_whole(folder: Path) -> Path:
    """A run of the whole U-Net and the whole text encoder."""
    return run(folder, folder / "whole-words", "--images", 120, "--learning-rate", 0.003, *_options("text whole"))


def losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open() as file:
        return [float(row["fixed_loss"]) for row in csv.DictReader(file)]


def output_of(folder: Path, loras: Path | None, names: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """The U-Net's prediction for the prompt, as it is served, and the prompt's hidden states."""
    model = load_for_serving(folder, loras=loras).model
    conditioning = model.encode([ConditioningRequest(prompt=PROMPT, loras=names)])
    levels = [torch.full((1,), value) for value in (T, 0.8, 0.6)]
    return model.denoise(noise(), *levels, conditioning).epsilon, conditioning[CONTEXT]


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def untrained_loss(folder: Path) -> float:
    """The loss of a run that changes nothing: of the model, and of each adapter at its start."""
    (loss,) = losses(run(folder, folder / "start", "--images", 4, "--learning-rate", 0))
    return loss


KINDS = ["adapter", "whole", "text adapter", "text whole"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls(kind: str, untrained_loss: float, request: pytest.FixtureRequest) -> None:
    assert losses(request.getfixturevalue(kind.replace(" ", "_")))[-1] < 0.9 * untrained_loss


def _options(kind: str) -> tuple[str, ...]:
    rank = ("--lora-rank", "4") if kind.endswith("adapter") else ()
    return (*rank, "--train-text-encoder") if kind.startswith("text") else rank


@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("adapter", "text whole") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_a_resumed_run_is_exact(kind: str, folder: Path, tmp_path: Path) -> None:
    options = (*_options(kind), "--learning-rate", 0.01, "--caption-dropout", 0.5)
    at_once = run(folder, tmp_path / "at_once", "--images", 24, *options)
    paused = run(folder, tmp_path / "paused", "--images", 12, *options)
    fine_tune("--model", folder / "model", "--data", folder / "pictures", "--out", paused, "--resume", "--images", 24)
    states = [load_file(out / "checkpoints" / "step-00000006.safetensors") for out in (at_once, paused)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@torch.inference_mode()
def test_an_adapter_is_served_at_once_and_equals_that_of_diffusers(folder: Path, adapter: Path) -> None:
    found, context = output_of(folder / "model", adapter / "loras", {"squares": 0.7})
    plain, _ = output_of(folder / "model", None, {})
    assert (found - plain).abs().max() > 0.01
    theirs = StableDiffusionPipeline.from_pretrained(folder / "model", local_files_only=True)
    theirs.load_lora_weights(adapter / "loras", weight_name="squares.safetensors", adapter_name="squares")
    theirs.set_adapters(["squares"], [0.7])
    torch.testing.assert_close(found, theirs.unet(noise(), T, context).sample, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_whole_model_is_a_folder_for_us_and_for_diffusers(folder: Path, whole: Path) -> None:
    found, context = output_of(whole / "model", None, {})
    plain, _ = output_of(folder / "model", None, {})
    assert (found - plain).abs().max() > 0.01
    theirs = StableDiffusionPipeline.from_pretrained(whole / "model", local_files_only=True)
    torch.testing.assert_close(found, theirs.unet(noise(), T, context).sample, rtol=0, atol=1e-4)
    assert {tensor.dtype for tensor in load_file(next((whole / "model/unet").glob("*.safetensors"))).values()} == {
        torch.float16
    }


@torch.inference_mode()
def test_an_adapter_of_the_text_encoder_is_served_at_once_and_equals_that_of_diffusers(
    folder: Path, text_adapter: Path
) -> None:
    names = set(load_file(text_adapter / "loras" / "words.safetensors"))
    assert {name.partition(".")[0] for name in names} == {"unet", "text_encoder"}
    found, context = output_of(folder / "model", text_adapter / "loras", {"words": 0.7})
    plain, plain_context = output_of(folder / "model", None, {})
    assert (context - plain_context).abs().max() > 0.01
    assert (found - plain).abs().max() > 0.01
    theirs = StableDiffusionPipeline.from_pretrained(folder / "model", local_files_only=True)
    theirs.load_lora_weights(text_adapter / "loras", weight_name="words.safetensors", adapter_name="words")
    theirs.set_adapters(["words"], [0.7])
    torch.testing.assert_close(context, theirs.encode_prompt(PROMPT, "cpu", 1, False)[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found, theirs.unet(noise(), T, context).sample, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_whole_model_with_its_text_encoder_is_a_folder_for_us_and_for_diffusers(
    folder: Path, text_whole: Path
) -> None:
    found, context = output_of(text_whole / "model", None, {})
    _, plain_context = output_of(folder / "model", None, {})
    assert (context - plain_context).abs().max() > 0.01
    theirs = StableDiffusionPipeline.from_pretrained(text_whole / "model", local_files_only=True)
    torch.testing.assert_close(context, theirs.encode_prompt(PROMPT, "cpu", 1, False)[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found, theirs.unet(noise(), T, context).sample, rtol=0, atol=1e-4)
    weights = [
        path for part in ("unet", "text_encoder") for path in (text_whole / "model" / part).glob("*.safetensors")
    ]
    assert {tensor.dtype for path in weights for tensor in load_file(path).values()} == {torch.float16}


def test_without_the_option_the_text_encoder_stays_as_it_is(folder: Path, whole: Path, adapter: Path) -> None:
    own, copied = (load_file(path / "text_encoder/model.safetensors") for path in (folder / "model", whole / "model"))
    assert all(torch.equal(own[name], copied[name]) for name in own)
    assert {name.partition(".")[0] for name in load_file(adapter / "loras/squares.safetensors")} == {"unet"}


@pytest.mark.parametrize("rank", [pytest.param((), marks=pytest.mark.slow), ("--lora-rank", "2")])
def test_both_text_encoders_of_xl_are_trained_and_served(rank: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "xl", build=build_xl_pipeline)
    common = ("--model", tmp_path / "xl", "--data", folder / "pictures", "--out", tmp_path / "out", *TINY, *rank)
    output = fine_tune(*common, "--images", 12, "--learning-rate", 0.02, "--train-text-encoder")
    assert "with text encoders" in output
    if rank:
        model = load_for_serving(tmp_path / "xl", loras=tmp_path / "out/loras").model
    else:
        model = load_for_serving(tmp_path / "out/model").model
    plain = load_for_serving(tmp_path / "xl").model.encode([ConditioningRequest(prompt=PROMPT)])
    found = model.encode([ConditioningRequest(prompt=PROMPT, loras={"out": 1.0} if rank else {})])
    changed = (found[CONTEXT] - plain[CONTEXT])[0].abs().amax(dim=0)  # (32 + 24,) of the two encoders
    assert changed[:32].max() > 1e-3
    assert changed[32:].max() > 1e-3
    assert (found["pooled"] - plain["pooled"]).abs().max() > 1e-3


def test_another_model_or_other_pictures_cannot_be_resumed_with(folder: Path, adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "pictures"
    other.mkdir()
    Image.new("RGB", (24, 20)).save(other / "a.png")
    (other / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a black square"}) + "\n")
    common = ("--out", adapter, "--resume", "--images", 480)
    assert "--data is not that of the run" in fine_tune("--model", folder / "model", "--data", other, *common, code=1)
    again = fine_tune("--model", folder / "model", "--data", folder / "pictures", "--out", adapter, *TINY, code=1)
    assert "already holds a run" in again


def test_captions_come_from_text_files_or_from_one_list(folder: Path, tmp_path: Path) -> None:
    found = read_captioned_folder(folder / "pictures")
    assert [(each.path.name, each.caption) for each in found] == [
        (f"{name}.png", f"a {name} square") for name in sorted(CAPTIONS)
    ]
    (tmp_path / "inner").mkdir()
    for name in ("a.png", "inner/b.png"):
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / name)
    rows: list[dict[str, Any]] = [{"file_name": "a.png", "text": "one"}, {"file_name": "inner/b.png", "text": " two "}]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert [each.caption for each in read_captioned_folder(tmp_path)] == ["one", "two"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no pictures"),
        ({"a.png": b""}, "a.png have no caption: each needs a .txt file of the same name next to it"),
        ({"a.png": b"", "a.txt": b"  \n"}, "a.png have no caption"),
        ({"a.png": b"", "a.txt": b"\xff"}, "is not UTF-8 text"),
        ({"a.png": b"", "a.txt": b"x" * 2001}, "has 2001 characters"),
        ({"a.png": b"", "metadata.jsonl": b'{"file_name": "b.png", "text": "b"}'}, "each needs a line in metadata"),
        (
            {"a.png": b"", "metadata.jsonl": b'\n{"file_name": "a.png"}'},
            "line 2: not an object with file_name and text",
        ),
        ({"a.png": b"", "metadata.jsonl": b'{"file_name": 1, "text": "b"}'}, "line 1: file_name and text are not both"),
    ],
)
def test_pictures_without_captions_are_refused_by_name(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_captioned_folder(tmp_path)
