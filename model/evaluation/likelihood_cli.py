"""`denoised likelihood`."""

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

from denoised.command_line.options import option
from denoised.model.command_line import report_errors
from denoised.model.errors import DataError
from denoised.model.evaluation.likelihood import Likelihood, measure_likelihood
from denoised.model.progress import progress
from denoised.model.serving.card import ModelCard
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.training.datasets.images import read_image

WHITE = (255, 255, 255)  # behind transparent images, as in training


def likelihood(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE…", help="image files; resized if they are of another size")
    ],
    model: Annotated[Path, option("--model", help="the model folder")] = ZOO / "fashion-mnist",
    label: Annotated[
        str | None, option("--label", help="class name or index of all the images (default: no class)")
    ] = None,
    steps: Annotated[
        int,
        option(
            "--steps",
            help="steps of the integration, two evaluations each; the fewer, the larger its error",
            min=25,
        ),
    ] = 100,
    probes: Annotated[int, option("--probes", help="random vectors of Hutchinson's trace estimate", min=1)] = 1,
    seed: Annotated[int, option("--seed", help="seed of the probes and of the dequantization noise", min=0)] = 0,
    batch: Annotated[int, option("--batch", help="images per evaluation of the network", min=1)] = 16,
    device: Annotated[str, option("--device", help="cpu, cuda or mps")] = "cpu",
    as_json: Annotated[bool, option("--json", help="print one JSON object per image, one per line")] = False,
) -> None:
    """Bits per dimension of images under a model: fewer means likelier; random bytes take 8 or more.

    The integration error estimates the error from the finite number of steps, from the results of half and of a quarter
    as many; it is not a bound. When piped: one line per image, with tabs between the columns, and the largest
    integration error on stderr.
    """
    with report_errors("likelihood"):
        loaded = load_model(model, device=device)
        index = _class_index(loaded.card, label)
        pixels = torch.stack([read_for_model(loaded, path) for path in images])
        found: list[Likelihood] = []
        with progress(Console(stderr=True), "likelihood", len(images), "images") as advance:
            for part in pixels.split(batch):
                # The same probes and noise for every image, so that its bits do not depend on the other files.
                seeds, labels = [seed] * len(part), [index] * len(part)
                found.append(measure_likelihood(loaded, part, labels, steps=steps, probes=probes, seeds=seeds))
                advance(len(part))
    bits = [value for part in found for value in part.bits_per_dimension.tolist()]
    errors = [value for part in found for value in part.integration_error.tolist()]
    _print_bits(images, bits, errors, loaded.card.labels[index] if index is not None else None, as_json)
    half = f"how far {steps // 2} steps lead from the result; an estimate, not a bound"
    typer.echo(f"integration error of {steps} steps: {max(errors):.3f} bits/dim ({half})", err=True)


def read_for_model(model: PixelModel, path: Path) -> Tensor:
    """The center square of an image file in the model's size and channels: (C, H, W) uint8.

    Raises:
        DataError: if the file is not an image, or the model's images are not square with one or three channels.
    """
    channels, height, width = model.shape
    if height != width or channels not in (1, 3):
        raise DataError(f"images of {width}×{height} in {channels} channel(s) cannot be read from files")
    try:
        rgb = read_image(path, height, WHITE)
    except DataError as error:
        raise DataError(f"not a readable image: {error}") from error
    if channels == 3:
        return rgb
    gray = Image.fromarray(rgb.permute(1, 2, 0).numpy()).convert("L")
    return torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8).view(1, height, width)


def _class_index(card: ModelCard, label: str | None) -> int | None:
    if label is None:
        return None
    index = card.class_index_of_text(label)
    if index is None:
        if several := card.matching_labels(label):
            raise DataError(f"label = {label!r} is ambiguous (allowed: an exact name: {', '.join(several)})")
        known = ", ".join(card.labels) or "no classes"
        raise DataError(f"label = {label!r} is not a class of {card.name} (known: {known})")
    return index


def _print_bits(images: list[Path], bits: list[float], errors: list[float], label: str | None, as_json: bool) -> None:
    rows = list(zip(map(str, images), bits, errors, strict=True))
    console = Console()
    if as_json:
        for path, value, error in rows:
            members = {"image": path, "label": label, "bits_per_dimension": value, "integration_error": error}
            typer.echo(json.dumps(members))
    elif not console.is_terminal:
        for path, value, _ in rows:
            typer.echo(f"{path}\t{value:.3f}")
    else:
        table = Table("image", "bits/dim", "integration error")
        for path, value, error in rows:
            table.add_row(path, f"{value:.3f}", f"{error:.3f}")
        console.print(table)
