"""Measure one evaluation of the network on a CUDA device beside diffusers, and write docs/performance-cuda.md.

python -m bench.accelerator

In each precision: ours as a worker runs it, diffusers' in both memory formats and compiled with CUDA graphs. They
take turns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median

import torch
import typer
from torch import Tensor, nn

from bench.kernels import OutputOnly
from bench.programs import ROOT
from bench.servers import FOLDER
from model.atomic import write_text_atomically
from model.checkpoint import load_model
from model.graphs import BUCKET, PRECISIONS, GraphedUNet, Precision
from model.unet import UNet

DEVICE = "cuda"
DOCUMENT = ROOT / "docs" / "performance-cuda.md"
BATCHES = (1, 16, 64)
COMPILED_BATCHES = (16, 64)
TIMES, ROUNDS = 15, 5  # evaluations of a spell, of which the median counts; spells

Row = tuple[str, ...]


def main() -> None:
    """Measure, write the page, show it."""
    if not torch.cuda.is_available():
        raise SystemExit("bench.accelerator: there is no CUDA device here")
    text = f"{_head()}\n\n{_table(('', *(f'batch {images}' for images in BATCHES)), evaluations())}\n"
    write_text_atomically(DOCUMENT, text)
    typer.echo(text)


def evaluations() -> list[Row]:
    """A row for each subject: its milliseconds at each of BATCHES."""
    times: dict[str, dict[int, list[float]]] = {}
    for batch in BATCHES:
        subjects = _subjects(batch)
        for _ in range(ROUNDS):
            for name, evaluate in subjects.items():
                times.setdefault(name, {}).setdefault(batch, []).append(_milliseconds(evaluate))
    return [(name, *(_spread(found.get(batch, []), 3) for batch in BATCHES)) for name, found in times.items()]


def _subjects(batch: int) -> dict[str, Callable[[], object]]:
    subjects: dict[str, Callable[[], object]] = {}
    for precision in PRECISIONS:
        model = load_model(FOLDER, device=DEVICE)
        assert isinstance(model.unet, UNet)
        ours = GraphedUNet(model.unet, model.shape, precision)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, *model.shape, generator=generator).to(DEVICE)
        t, labels = torch.linspace(1, 999, batch, device=DEVICE), torch.arange(batch, device=DEVICE) % 10
        subjects[f"denoised, {precision}"] = _call(ours, x, t, labels)
        for layout in ("contiguous", "channels_last"):
            network = _of_diffusers(precision, layout)
            given = x.to(next(network.parameters()).dtype).contiguous(memory_format=getattr(torch, _format(layout)))
            subjects[f"diffusers, {layout}, {precision}"] = _in(precision, _call(network, given, t, labels))
        if batch in COMPILED_BATCHES:
            given = x.to(next(network.parameters()).dtype)
            subjects[f"diffusers, compiled with CUDA graphs, {precision}"] = _compiled(precision, given, t, labels)
    return subjects


def _call(network: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Callable[[], object]:
    return lambda: network(x, t, labels)


def _in(precision: Precision, evaluate: Callable[[], object]) -> Callable[[], object]:
    """The same, torch's switches set for that precision."""

    def switched() -> object:
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        return evaluate()

    return switched


def _compiled(precision: Precision, x: Tensor, t: Tensor, labels: Tensor) -> Callable[[], object]:
    network = torch.compile(_of_diffusers(precision, "contiguous"), mode="reduce-overhead", dynamic=False)
    evaluate = _in(precision, lambda: network(x, t, labels))
    with torch.no_grad():
        for _ in range(3):
            evaluate()
    return evaluate


def _of_diffusers(precision: Precision, layout: str) -> nn.Module:
    from diffusers import UNet2DModel

    network = UNet2DModel.from_pretrained(FOLDER, subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False)
    network = network.to(DEVICE, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    network = network.to(memory_format=getattr(torch, _format(layout)))
    return OutputOnly(network).eval().requires_grad_(False)


def _format(layout: str) -> str:
    return "contiguous_format" if layout == "contiguous" else layout


@torch.no_grad()
def _milliseconds(evaluate: Callable[[], object]) -> float:
    """The median of a spell, by the device's clock and the host's waiting for it."""
    evaluate()
    torch.cuda.synchronize()
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        evaluate()
        torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - began))
    return median(taken)


def _head() -> str:
    name = torch.cuda.get_device_name(DEVICE)
    today = datetime.now(UTC).date().isoformat()
    return (
        "# How fast denoised is on a GPU\n\nWritten by `python -m bench.accelerator`; do not edit. "
        f"{name}, {os.cpu_count()} CPU cores, torch {torch.__version__}, {today}.\n\n"
        "Milliseconds of one evaluation of the bundled model's network, the host's waiting for the device included: "
        f"medians of {ROUNDS} rounds in which the subjects take turns, in brackets the least and the greatest. "
        f"denoised evaluates {BUCKET} images at a time, whatever is asked for (docs/decisions.md says why), and "
        "compiles nothing."
    )


def _table(head: Row, rows: list[Row]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _spread(samples: list[float], digits: int) -> str:
    if not samples:
        return "–"
    return f"{median(samples):.{digits}g} ({min(samples):.{digits}g}–{max(samples):.{digits}g})"


if __name__ == "__main__":
    main()
