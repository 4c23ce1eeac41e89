"""`denoised quality`, the command behind `make quality`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console

from denoised.command_line.options import option
from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.command_line import report_errors
from denoised.model.evaluation.cli_options import (
    DataOption,
    DeviceOption,
    FeaturesOption,
    PrecisionOption,
    check_precision,
)
from denoised.model.evaluation.evaluator import Evaluator
from denoised.model.evaluation.features import FASHION_FEATURES
from denoised.model.evaluation.quality_consistency import missing_measurements, tuned_folder, tuned_weights
from denoised.model.evaluation.quality_headline import ReportSubject
from denoised.model.evaluation.quality_report import TABLE, write_report
from denoised.model.evaluation.quality_sweep import (
    SWEEP_SAMPLES,
    headline_measurements,
    measure_once,
    sweep_measurements,
)
from denoised.model.evaluation.quality_table import Measurement, describe, read_results
from denoised.model.evaluation.requirements import require_packages
from denoised.model.progress import progress
from denoised.model.serving.loading import ZOO


def quality(
    data: DataOption,
    model: Annotated[Path, option("--model", help="the model folder to measure")] = ZOO / "fashion-mnist",
    features: FeaturesOption = FASHION_FEATURES,
    out: Annotated[
        Path, option("--out", help="the folder for quality.csv, quality.md and pictures/quality.png")
    ] = Path("docs"),
    samples: Annotated[int, option("--samples", help="images for each row of the sweep", min=4)] = SWEEP_SAMPLES,
    samplers: Annotated[str, option("--samplers", help="comma-separated (default: every sampler)")] = "",
    precision: PrecisionOption = "float32",
    batch: Annotated[
        int, option("--batch", help="images per evaluation of the network; best a divisor of --samples", min=1)
    ] = 50,
    compiled: Annotated[
        bool, option("--compile", help="compile the network first: faster, but takes a minute and a C++ compiler")
    ] = False,
    measuring: Annotated[
        bool, option("--measure/--no-measure", help="--no-measure only rewrites the report from the existing rows")
    ] = True,
    device: DeviceOption = "cpu",
) -> None:
    """Measure a model with every sampler and write docs/quality.md; continues an interrupted sweep."""
    console = Console()
    with report_errors("quality"):
        check_precision(precision)
        require_packages("torchmetrics", "matplotlib")
        evaluator = Evaluator(data, features, model, device=device, batch=batch, compiled=compiled)
        subject = _subject(evaluator, model, samples)
        assert evaluator.model is not None
        names = [name for name in samplers.split(",") if name] or evaluator.model.card.samplers
        out.mkdir(parents=True, exist_ok=True)
        if measuring:
            _measure_all(evaluator, _measurements(evaluator, names, samples, precision), out, subject, console)
            if missing := missing_measurements(evaluator, model, read_results(out / TABLE)):
                tuned = Evaluator(data, features, tuned_folder(model), device=device, batch=batch)
                _measure_all(tuned, missing, out, subject, console)
        write_report(out, subject, read_results(out / TABLE))


def _subject(evaluator: Evaluator, model: Path, samples: int) -> ReportSubject:
    assert evaluator.model is not None
    return ReportSubject(
        name=evaluator.model.card.name,
        weights=evaluator.weights,
        features=evaluator.features,
        model=read_card_file(model),
        space=evaluator.space.card,
        samples=samples,
        tuned_weights=tuned_weights(model),
    )


def _measurements(evaluator: Evaluator, samplers: list[str], samples: int, precision: str) -> list[Measurement]:
    assert evaluator.model is not None
    return [
        *headline_measurements(evaluator, precision),
        *sweep_measurements(evaluator, evaluator.model, samplers, samples, precision),
    ]


def _measure_all(
    evaluator: Evaluator, measurements: list[Measurement], out: Path, subject: ReportSubject, console: Console
) -> None:
    """Measure what is not in the table yet; rewrite the report after each measurement."""
    path = out / TABLE
    before = read_results(path)
    for measurement in measurements:
        if measurement in before:
            continue
        with progress(console, describe(measurement), measurement.samples, "images") as advance:
            result = measure_once(evaluator, path, measurement, advance)
        console.print(
            f"{describe(measurement)}: FID {result.fid:.4g}, {result.seconds:.0f} s", highlight=False, soft_wrap=True
        )
        write_report(out, subject, read_results(path))
