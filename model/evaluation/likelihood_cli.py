"""`denoised likelihood`: how likely a model finds pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from denoised.model.errors import DataError, ModelError
from denoised.model.evaluation.likelihood import bits_per_dimension
from denoised.model.options import option
from denoised.model.progress import progress
from denoised.model.serving.card import ModelCard
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.training.images import read_image

WHITE = (255, 255, 255)  # behind transparent pictures, as in training


def likelihood(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE…", help="pictures; resized if they are of another size")
    ],
    model: Annotated[Path, option("--model", help="the model folder that is asked")] = ZOO / "fashion-mnist",
    label: Annotated[
        str | None, option("--label", help="class name or index that all of them are taken for; none = no class")
    ] = None,
    steps: Annotated[
        int, option("--steps", help="of Heun's method along the flow, two evaluations each; few understate", min=25)
    ] = 100,
    probes: Annotated[int, option("--probes", help="of Hutchinson's trace estimate", min=1)] = 1,
    seed: Annotated[int, option("--seed", help="of the probes and of the noise between bytes", min=0)] = 0,
    batch: Annotated[int, option("--batch", help="pictures in one evaluation of the network", min=1)] = 16,
    device: Annotated[str, option("--device", help="cpu, cuda, mps")] = "cpu",
    as_json: Annotated[bool, option("--json", help="one JSON object a picture and line")] = False,
) -> None:
    """Bits per dimension of pictures under a model: fewer are likelier; 8 is what bytes at random need.

    No terminal: a line a picture, its columns separated by tabs.
    """
    try:
        judge = load_model(model, device=device)
        index = _class(judge.card, label)
        pictures = torch.stack([read_for(judge, path) for path in images])
        figures: list[float] = []
        with progress(Console(stderr=True), "likelihood", len(images), "pictures") as advanced:
            for start in range(0, len(images), batch):
                part = pictures[start : start + batch]
                # Every picture with the same probes and noise, so that its figure is its own.
                for bits in _bits(judge, part, index, steps, probes, seed):
                    figures.append(bits)
                    advanced(1)
    except (ModelError, OSError) as error:
        line = f"denoised likelihood: {error}"
        Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    _print(images, figures, judge.card.labels[index] if index is not None else None, as_json)


def read_for(model: PixelModel, path: Path) -> Tensor:
    """A picture as the model's own would be: (C, H, W) uint8, the middle square, its size, grey if it is grey.

    Raises:
        DataError: for a file that is no picture, or a model of neither squares nor one or three channels.
    """
    channels, height, width = model.shape
    if height != width or channels not in (1, 3):
        raise DataError(f"pictures of {width}×{height} in {channels} channel(s) cannot be read from files")
    try:
        colours = read_image(path, height, WHITE)
    except DataError as error:
        raise DataError(f"no readable picture: {error}") from error
    if channels == 3:
        return colours
    grey = Image.fromarray(colours.permute(1, 2, 0).numpy()).convert("L")
    return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(1, height, width)


def _bits(model: PixelModel, pictures: Tensor, label: int | None, steps: int, probes: int, seed: int) -> list[float]:
    return bits_per_dimension(
        model, pictures, [label] * len(pictures), steps=steps, probes=probes, seeds=[seed] * len(pictures)
    ).tolist()


def _class(card: ModelCard, label: str | None) -> int | None:
    if label is None:
        return None
    index = card.class_index(int(label) if label.isdecimal() else label)
    if index is None:
        known = ", ".join(card.labels) or "no classes"
        raise DataError(f"label = {label!r} is no class of {card.name} (known: {known})")
    return index


def _print(images: list[Path], figures: list[float], label: str | None, as_json: bool) -> None:
    if as_json:
        for path, bits in zip(images, figures, strict=True):
            typer.echo(json.dumps({"image": str(path), "label": label, "bits_per_dimension": bits}))
        return
    console = Console()
    rows = [(str(path), f"{bits:.3f}") for path, bits in zip(images, figures, strict=True)]
    if not console.is_terminal:
        for row in rows:
            typer.echo("\t".join(row))
        return
    table = Table("picture", "bits/dim")
    for row in rows:
        table.add_row(*row)
    console.print(table)
