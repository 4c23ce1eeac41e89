"""`denoised quality-text`, the second half of `make emoji`."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from torch import Tensor

from denoised.command_line.options import option
from denoised.model.checkpoints.atomic import write_text_atomically
from denoised.model.checkpoints.card_file import read_card_file, write_card_file
from denoised.model.command_line import report_errors
from denoised.model.evaluation.cli_options import DeviceOption
from denoised.model.evaluation.requirements import require_packages
from denoised.model.evaluation.text_to_image.evaluate_text_cli import save_sheet
from denoised.model.evaluation.text_to_image.judge import Judge, load_judge
from denoised.model.evaluation.text_to_image.text_evaluation import (
    DrawingSettings,
    TextEvaluation,
    check_model,
    draw_captions,
)
from denoised.model.evaluation.text_to_image.text_quality_page import PageSubject, render_text_page
from denoised.model.evaluation.text_to_image.text_results import (
    TextResult,
    best,
    defaults_of,
    guidance_sweep,
    read_text_results,
    sampler_sweep,
    write_text_results,
)
from denoised.model.evaluation.text_to_image.train_judge_cli import load_pictures
from denoised.model.progress import progress
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.loading import ZOO, load_text_model

SHEET_PICTURES = 100
DIGITS = 4  # of the figures in the card


class QualityMeasurement:
    """Measurements of one model, each taken once and kept in a file.

    path: the file with the results.
    """

    def __init__(
        self, model: LatentModel, judge: Judge, evaluation: TextEvaluation, path: Path, batch: int, console: Console
    ) -> None:
        self._model, self._judge_digest, self._evaluation = model, judge.digest, evaluation
        self._path, self._batch, self._console = path, batch, console

    def measure(self, settings: DrawingSettings, captions: int) -> TextResult:
        """The result of the first captions, from the file if it is there."""
        results = read_text_results(self._path)
        for each in results:
            if each.answers(self._model.card.digest, self._judge_digest, settings, captions):
                return each
        evaluation = self._evaluation.first(captions)
        images, seconds = self.draw(evaluation, settings)
        with progress(self._console, "judging", len(evaluation.held_out), "real pictures") as advance:
            report = evaluation.measure(images, seconds, advance)
        result = TextResult(self._model.card.digest, self._judge_digest, settings, report)
        write_text_results(self._path, [*results, result])
        self._console.print(
            f"{settings.sampler}, {settings.steps} steps, guidance {settings.guidance_scale:g}: "
            f"{report.drawn.everything:.1%} right, object {report.drawn.object:.1%}, {seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        return result

    def draw(self, evaluation: TextEvaluation, settings: DrawingSettings) -> tuple[Tensor, float]:
        """One picture for each caption: ((N, 3, H, W) uint8, seconds)."""
        settings = dataclasses.replace(settings, batch=self._batch)
        with progress(self._console, "drawing", len(evaluation.captions), "captions") as advance:
            return draw_captions(self._model, evaluation.captions, settings, advance)

    def sheet(self, settings: DrawingSettings) -> Tensor:
        """The pictures of the first captions: (N, 3, H, W) uint8."""
        return self.draw(self._evaluation.first(SHEET_PICTURES), settings)[0]

    def sweep(self, captions: int) -> list[TextResult]:
        """Guidance scales, then samplers and step counts at the best of them."""
        scales = [self.measure(settings, captions) for settings in guidance_sweep()]
        samplers = sampler_sweep(best(scales).settings.guidance_scale)
        return [*scales, *(self.measure(settings, captions) for settings in samplers)]


def quality_text(
    data: Annotated[
        Path, option("--data", help="the packages of drawings, or the folder of a run that has rendered them")
    ],
    judge: Annotated[Path, option("--judge", help="a folder written by denoised train-judge")],
    model: Annotated[Path, option("--model", help="the model folder; its card is rewritten")] = ZOO / "emoji",
    out: Annotated[
        Path, option("--out", help="the folder for quality-NAME.json, quality-NAME.md and pictures/NAME.png")
    ] = Path("docs"),
    samples: Annotated[int, option("--samples", help="number of held-out captions to draw", min=2)] = 2_000,
    sweep_samples: Annotated[int, option("--sweep-samples", help="the same, for each row of the sweep", min=2)] = 200,
    batch: Annotated[int, option("--batch", help="pictures per evaluation of the network", min=1)] = 32,
    device: DeviceOption = "cpu",
) -> None:
    """Choose the defaults of a text-to-image model by measurement, measure it, and write its page.

    The best settings of the sweep and the figures of the measurement go into the model's card. What was measured before
    is not measured again.
    """
    console = Console()
    with report_errors("quality-text"):
        require_packages("torchmetrics")
        known = load_judge(judge, device)
        evaluation = TextEvaluation(load_pictures(data, console), known, max(samples, sweep_samples))
        loaded = load_text_model(model, device=device)
        check_model(loaded)
        name = loaded.card.name
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        measurement = QualityMeasurement(loaded, known, evaluation, out / f"quality-{name}.json", batch, console)
        sweep = measurement.sweep(sweep_samples)
        main = measurement.measure(best(sweep).settings, samples)
        _write_card(model, main)
        sheet = measurement.sheet(main.settings)
        save_sheet(out / "pictures" / f"{name}.png", sheet)
        subject = PageSubject(
            name=name,
            card=read_card_file(model),
            judge=known.card,
            main=main,
            sweep=sweep,
            captions=evaluation.first(SHEET_PICTURES).captions,
            table=f"quality-{name}.json",
            sheet=f"pictures/{name}.png",
        )
        write_text_atomically(out / f"quality-{name}.md", render_text_page(subject))


def _write_card(folder: Path, main: TextResult) -> None:
    """Write defaults and figures into a model's card."""
    settings = {name: value for name, value in asdict(main.settings).items() if name != "batch"}
    card = read_card_file(folder)
    evaluation = _rounded({"judge": main.judge, **settings, **asdict(main.report)})
    write_card_file(folder, card.model_copy(update={"default": defaults_of(main.settings), "evaluation": evaluation}))


def _rounded(value: Any) -> Any:
    """Numbers of a few digits in nested dictionaries."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value
