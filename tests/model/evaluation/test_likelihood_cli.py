"""`denoised likelihood`: real images are likelier than noise, shuffled pixels and negatives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from denoised.model.__main__ import app
from denoised.model.evaluation.likelihood import bits_per_dimension
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.training.datasets.sources import load_dataset
from tests.requirements import FASHION_MNIST, needs_fashion_mnist


def unreal(images: Tensor) -> dict[str, Tensor]:
    """Three sets of as many unreal images."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(images[0].numel(), generator=generator)
    return {
        "noise": torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8),
        "shuffled": images.flatten(1)[:, order].view_as(images),
        "inverted": 255 - images,
    }


def mean_bits(name: str, images: Tensor, labels: list[int], steps: int) -> Tensor:
    return bits_per_dimension(load_model(ZOO / name), images, labels, steps=steps)


def test_real_digits_are_likelier_than_unreal_ones() -> None:
    """Each held-out digit against its own unreal copy."""
    pytest.importorskip("sklearn")
    held_out = load_dataset(Path("digits"), split="test")
    images, labels = held_out.images[:24], held_out.classes[:24].tolist()
    real = mean_bits("digits", images, labels, steps=25)
    for kind, pictures in unreal(images).items():
        assert (mean_bits("digits", pictures, labels, steps=25) > real).double().mean() > 0.95, kind
    wrong = mean_bits("digits", images, [(label + 5) % 10 for label in labels], steps=25)
    assert wrong.mean() > real.mean()


@pytest.mark.slow
@needs_fashion_mnist
def test_real_garments_are_likelier_than_unreal_ones() -> None:
    held_out = load_dataset(FASHION_MNIST, split="test")
    images, labels = held_out.images[:12], held_out.classes[:12].tolist()
    real = mean_bits("fashion-mnist", images, labels, steps=50)
    for kind, pictures in unreal(images).items():
        assert (mean_bits("fashion-mnist", pictures, labels, steps=50) > real).all(), kind


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["likelihood", *arguments], prog_name="denoised")


def test_the_command_prints_the_bits_of_each_image(tmp_path: Path) -> None:
    """An image of the model's own size is read unchanged, and its bits do not depend on the other files."""
    pytest.importorskip("sklearn")
    digits = load_dataset(Path("digits"), split="test")
    paths = []
    for k in range(2):
        paths.append(tmp_path / f"digit-{k}.png")
        Image.fromarray(digits.images[k, 0].numpy()).save(paths[-1])
    Image.fromarray(255 - digits.images[0, 0].numpy()).resize((80, 80)).save(tmp_path / "negative.png")
    asked = ["--model", str(ZOO / "digits"), "--steps", "25", "--json", "--label", str(int(digits.classes[0]))]
    done = run(*map(str, paths), str(tmp_path / "negative.png"), *asked)
    assert done.exit_code == 0, done.stderr
    first, second, negative = (json.loads(line) for line in done.stdout.splitlines())
    assert first["image"] == str(paths[0])
    assert first["label"] == str(int(digits.classes[0]))
    assert 0 < first["integration_error"] < 0.5
    assert first["bits_per_dimension"] < negative["bits_per_dimension"]
    expected = bits_per_dimension(
        load_model(ZOO / "digits"), digits.images[:2], [int(digits.classes[0])] * 2, steps=25, seeds=[0, 0]
    )
    assert [first["bits_per_dimension"], second["bits_per_dimension"]] == pytest.approx(expected.tolist(), rel=1e-4)


def test_unusable_arguments_are_reported_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for arguments, expected in (
        ([str(text)], f"denoised likelihood: not a readable image: {text} (none of PNG"),
        ([str(tmp_path / "no.png")], "no.png"),
        ([str(text), "--label", "sandal"], "label = 'sandal' is not a class of digits (known: 0, 1, 2"),
        ([str(text), "--model", str(tmp_path)], f"{tmp_path}: is not a model folder"),
    ):
        done = run("--model", str(ZOO / "digits"), *arguments)
        assert done.exit_code == 1
        assert expected in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
