"""`denoised evaluate-text`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from denoised.command_line.options import option
from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.command_line import report_errors
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.evaluation.cli_options import DeviceOption
from denoised.model.evaluation.requirements import require_packages
from denoised.model.evaluation.text_to_image.judge import load_judge
from denoised.model.evaluation.text_to_image.text_evaluation import (
    DrawingSettings,
    TextEvaluation,
    TextReport,
    check_model,
    draw_captions,
)
from denoised.model.evaluation.text_to_image.text_scores import NEAR_RANK, Agreement
from denoised.model.evaluation.text_to_image.train_judge_cli import load_pictures
from denoised.model.progress import progress
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import load_text_model
from denoised.model.training.run.sample_grid import contact_sheet

SHEET_COLUMNS, SHEET_PICTURES = 10, 100
ROWS = ("object", "object_top5", "style", "background", "everything")


def evaluate_text(
    data: Annotated[
        Path, option("--data", help="the packages of drawings, or the folder of a run that has rendered them")
    ],
    judge: Annotated[Path, option("--judge", help="a folder written by denoised train-judge")],
    model: Annotated[Path, option("--model", help="the text-to-image model's folder")],
    samples: Annotated[int, option("--samples", help="number of held-out captions to draw", min=2)] = 2_000,
    sampler: Annotated[str | None, option("--sampler", help=f"{', '.join(SAMPLERS)} (default: the card's)")] = None,
    steps: Annotated[int | None, option("--steps", help="steps of the sampler (default: the card's)", min=1)] = None,
    guidance_scale: Annotated[
        float | None, option("--guidance-scale", help="1 = off … 20 (default: the card's)", min=1.0, max=20.0)
    ] = None,
    seed: Annotated[int, option("--seed", help="seed of the captions' choice and of the first picture")] = 0,
    batch: Annotated[int, option("--batch", help="pictures per evaluation of the network", min=1)] = 32,
    device: DeviceOption = "cpu",
    sheet: Annotated[Path | None, option("--sheet", help="write the first hundred pictures to this PNG file")] = None,
    as_json: Annotated[bool, option("--json", help="print one JSON object, and nothing else on stdout")] = False,
) -> None:
    """Measure whether an emoji model draws what captions ask for that it was never trained on.

    A judge network names the object, the style and the background of each picture.
    """
    console = Console(stderr=True)
    with report_errors("evaluate-text"):
        require_packages("torchmetrics")  # before spending minutes on pictures
        evaluation = TextEvaluation(load_pictures(data, console), load_judge(judge, device), samples, seed)
        loaded = load_text_model(model, device=device)
        check_model(loaded)
        settings = _settings(loaded, sampler, steps, guidance_scale, seed, batch)
        with progress(console, "drawing", samples, "captions") as advance:
            images, seconds = draw_captions(loaded, evaluation.captions, settings, advance)
        if sheet is not None:
            save_sheet(sheet, images)
        with progress(console, "judging", len(evaluation.held_out), "real pictures") as advance:
            report = evaluation.measure(images, seconds, advance)
        facts = {"model": loaded.card.digest, "judge": load_judge(judge).digest, **asdict(settings)}
        _print(report, facts, as_json)


def _settings(
    model: LatentModel, sampler: str | None, steps: int | None, guidance_scale: float | None, seed: int, batch: int
) -> DrawingSettings:
    """Settings that are not given are the card's."""
    default = model.card.default
    return DrawingSettings(
        sampler or default.sampler, steps or default.steps, guidance_scale or default.guidance_scale, seed, batch
    )


def save_sheet(path: Path, images: Tensor) -> None:
    """Write the first `SHEET_PICTURES` of pictures (N, 3, H, W) uint8 as one PNG file."""
    drawn = contact_sheet(list(images[:SHEET_PICTURES].permute(0, 2, 3, 1).numpy()), SHEET_COLUMNS)
    write_atomically(path, lambda temporary: drawn.save(temporary, format="png"))


def _print(report: TextReport, facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**facts, **asdict(report)}))
        return
    columns: dict[str, Agreement | None] = {
        "drawn": report.drawn,
        "new object × style": report.unseen_drawings,
        "new background": report.unseen_colors,
        "shuffled captions": report.shuffled,
        "real pictures": report.real,
    }
    title = f"{report.captions:,} held-out captions, {facts['sampler']}, {facts['steps']} steps, guidance "
    table = Table(title=f"{title}{facts['guidance_scale']:g}", title_justify="left")
    table.add_column("right, by the judge")
    for name in columns:
        table.add_column(name, justify="right")
    for row in ROWS:
        cells = (f"{getattr(each, row):.2%}" if each is not None else "–" for each in columns.values())
        table.add_row(row.replace("_top5", ", among five"), *cells)
    console = Console()
    console.print(table)
    ranks = report.ranks
    console.print(
        f"true picture among {ranks.candidates:,} drawings: median rank {ranks.median:g}, first {ranks.first:.2%}, "
        f"among the first {NEAR_RANK} {ranks.near:.2%}\n"
        f"Fréchet distance {report.frechet:.4g} (real pictures that are trained on: {report.trained_frechet:.4g})\n"
        f"{report.seconds:.0f} s for {report.captions:,} pictures; model {facts['model']}, judge {facts['judge']}",
        highlight=False,
        soft_wrap=True,
    )
