"""`denoised train-text` from the packages to a folder that diffusers loads."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from denoised.model.__main__ import app
from denoised.model.checkpoints.weights import read_weights
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.networks.text_encoder.text_encoder_config import TextEncoderConfig
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.text.tokenizer import TextTokenizer
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.text_to_image.text_run import load_autoencoder
from denoised.model.training.text_to_image.text_sampling import sample_captions
from denoised.model.training.text_to_image.text_trainer import CaptionedLatents, TextToImageNet
from denoised.model.training.text_to_image.text_training_config import TextTrainingConfig

TINY = (
    *("--preset", "tiny", "--batch", "8", "--autoencoder-batch", "8", "--precision", "float32", "--warmup", "2"),
    *("--images", "32", "--autoencoder-images", "16", "--threads", "1", "--checkpoint-every", "16"),
)
CAPTION = "goat, fluent style, on a teal background"


def train_text(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["train-text", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def run(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    train_text("--data", str(packages), "--out", str(folder), *TINY)
    return folder


@pytest.fixture(scope="module")
def pipeline(run: Path) -> StableDiffusionPipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        made = StableDiffusionPipeline.from_pretrained(run / "model", local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def net(run: Path) -> TextToImageNet:
    """The networks of the folder, read by our own code."""
    parts = {name: json.loads((run / "model" / name / "config.json").read_text()) for name in ("unet", "text_encoder")}
    made = TextToImageNet(
        TextUNet(TextUNetConfig.from_dict(parts["unet"])),
        TextEncoder(TextEncoderConfig.from_dict(parts["text_encoder"]), projected=False),
    )
    for name, network, file in (
        ("unet", made.unet, "diffusion_pytorch_model.safetensors"),
        ("text_encoder", made.text_encoder, "model.safetensors"),
    ):
        network.load_state_dict(read_weights(run / "model" / name / file, network.state_dict()))
    return made.eval().requires_grad_(False)


def test_a_run_leaves_a_log_sheets_and_a_model(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"autoencoder", "checkpoints", "config.json", "latents.npy", "loss.png", "metrics.csv", "model"} <= names
    assert {"pictures.npz", "samples", "tokenizer", "vae"} <= names
    assert RunFolder(run).read_config(TextTrainingConfig).images == 32
    with (run / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["held_out_loss"]) > 0
    assert float(row["shuffled_loss"]) > 0
    with (run / "autoencoder" / "metrics.csv").open() as file:
        assert float(next(iter(csv.DictReader(file)))["held_out_psnr"]) > 0
    for sheet in ("samples/00000032.png", "samples/originals.png"):
        with Image.open(run / sheet) as image:
            assert image.size == (10 * 65 - 1, 4 * 65 - 1)
    with Image.open(run / "autoencoder" / "samples" / "00000016.png") as image:
        assert image.size == (10 * 65 - 1, 4 * 65 - 1)


def test_the_card_holds_defaults_credits_and_the_preview(run: Path) -> None:
    card = json.loads((run / "model" / "model_card.json").read_text())
    assert card["default"]["sampler"] == "dpmpp_2m"
    assert card["default"]["steps"] <= 25
    assert "25 drawings of 5 emoji, on 12 background colors" in card["data"]
    assert any("CC-BY-4.0" in line for line in card["credits"])
    assert np.array(card["latent_rgb"]).shape == (5, 3)
    assert card["prompt_guide"]["parts"]["style"] == ["noto", "blob", "fluent", "flat", "twemoji"]
    assert card["training"]["images_seen"] == 32


def test_the_weights_are_stored_in_float16(run: Path) -> None:
    for file in (run / "model").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}, file


def test_another_average_of_u_net_and_text_encoder(run: Path, tmp_path: Path) -> None:
    """The width .1 is that of the newest snapshot."""
    outcome = CliRunner().invoke(app, ["ema", str(run), "--width", "0.1", "--out", str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    newest = load_file(RunFolder(run).snapshots()[-1])
    for part, file in (("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        found, before = load_file(tmp_path / part / file), load_file(run / "model" / part / file)
        assert set(found) == set(before)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, newest[f"0.10/{part}.{name}"], atol=1e-6, rtol=1e-3)
        assert any(not torch.equal(found[name], before[name]) for name in found)
    assert json.loads((tmp_path / "model_card.json").read_text())["training"]["ema_width"] == 0.1
    assert load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors").keys()


def test_diffusers_loads_the_folder_and_every_part_gives_equal_output(
    run: Path, pipeline: StableDiffusionPipeline, net: TextToImageNet
) -> None:
    assert pipeline.safety_checker is None
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    tokens = torch.tensor([TextTokenizer.from_folder(run / "model" / "tokenizer").encode(CAPTION)])
    theirs = pipeline.tokenizer(CAPTION, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(tokens, theirs)
    generator = torch.Generator().manual_seed(0)
    x, pixels = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 3, 64, 64, generator=generator)
    autoencoder = load_autoencoder(run / "model" / "vae")
    with torch.no_grad():
        context = net.text_encoder(tokens).last
        assert torch.allclose(context, pipeline.text_encoder(tokens)[0], atol=1e-5)
        expected = pipeline.unet(x, torch.tensor([500]), context, return_dict=False)[0]
        assert torch.allclose(net.unet(x, torch.tensor([500]), context), expected, atol=1e-5)
        assert torch.allclose(autoencoder.decode(x), pipeline.vae.decode(x, return_dict=False)[0], atol=1e-5)
        mean = pipeline.vae.encode(pixels, return_dict=False)[0].mean
        assert torch.allclose(autoencoder.encode(pixels).mean, mean, atol=1e-5)


def test_a_picture_equals_that_of_diffusers(
    run: Path, pipeline: StableDiffusionPipeline, net: TextToImageNet, captioned: CaptionedLatents
) -> None:
    """The scheduler file's own sampler, DDIM: zero terminal SNR, v-prediction, trailing spacing, guidance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        theirs = pipeline(
            CAPTION,
            num_inference_steps=4,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images[0]
    data = CaptionedLatents(
        pictures=captioned.pictures,
        latents=np.load(run / "latents.npy", mmap_mode="r"),
        held_out=captioned.held_out,
        tokenizer=TextTokenizer.from_folder(run / "model" / "tokenizer"),
        merges=captioned.merges,
        autoencoder=load_autoencoder(run / "model" / "vae"),
        preview=captioned.preview,
    )
    (ours,) = sample_captions(net, data, TextTrainingConfig(), [CAPTION], sampler="ddim", steps=4)
    assert np.abs(ours.astype(int) - np.rint(theirs * 255)).max() <= 2


def test_a_run_is_prolonged_without_the_packages(run: Path, packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    for source in run.rglob("*"):
        if source.is_file():
            (folder / source.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (folder / source.relative_to(run)).write_bytes(source.read_bytes())
    output = train_text("--out", str(folder), "--resume", "--images", "48")
    assert "step 4 of 6" in output
    assert json.loads((folder / "model" / "model_card.json").read_text())["training"]["images_seen"] == 48
    again = CliRunner().invoke(app, ["train-text", "--out", str(folder), "--data", str(packages), *TINY])
    assert again.exit_code == 1
    assert "already holds a run" in again.output


def test_a_new_run_needs_the_packages(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train-text", "--out", str(tmp_path / "run"), *TINY])
    assert result.exit_code == 1
    assert "name the folder with the packages with --data" in result.output
