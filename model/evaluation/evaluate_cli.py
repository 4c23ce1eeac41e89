"""`denoised evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from denoised.command_line.options import option
from denoised.model.command_line import report_errors
from denoised.model.diffusion.guidance import is_guided
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.cli_options import (
    DataOption,
    DeviceOption,
    FeaturesOption,
    PrecisionOption,
    check_precision,
)
from denoised.model.evaluation.data_splits import shuffle
from denoised.model.evaluation.evaluator import Evaluator, class_indices
from denoised.model.evaluation.features import FASHION_FEATURES
from denoised.model.evaluation.metrics import RELIABLE_COUNT
from denoised.model.evaluation.quality_table import MODEL, NOISE, TRAINING, Measurement, Result
from denoised.model.evaluation.requirements import require_packages
from denoised.model.progress import progress
from denoised.model.training.datasets.sources import load_dataset


def evaluate(
    data: DataOption,
    model: Annotated[Path | None, option("--model", help="measure images made by this model folder")] = None,
    pictures: Annotated[
        Path | None, option("--pictures", help="measure existing images instead, one subfolder per class")
    ] = None,
    training: Annotated[bool, option("--training", help="measure training images instead, for comparison")] = False,
    noise: Annotated[bool, option("--noise", help="measure uniform noise instead, for comparison")] = False,
    features: FeaturesOption = FASHION_FEATURES,
    samples: Annotated[int, option("--samples", help="number of images to make or use", min=1)] = 10_000,
    sampler: Annotated[str | None, option("--sampler", help=f"{', '.join(SAMPLERS)} (default: the card's)")] = None,
    steps: Annotated[int | None, option("--steps", help="steps of the sampler (default: the card's)", min=1)] = None,
    eta: Annotated[float, option("--eta", help="noise of ddim, 0 … 1")] = 0.0,
    guidance_scale: Annotated[
        float | None, option("--guidance-scale", help="1 = off … 20 (default: the card's)", min=1.0, max=20.0)
    ] = None,
    seed: Annotated[int, option("--seed", help="seed of the first image; each further image uses the next")] = 0,
    batch: Annotated[int, option("--batch", help="images per evaluation of the network", min=1)] = 64,
    precision: PrecisionOption = "float32",
    device: DeviceOption = "cpu",
    as_json: Annotated[bool, option("--json", help="print one JSON object, and nothing else on stdout")] = False,
) -> None:
    """Compare images with the test images of a dataset: FID, KID, precision, recall, class accuracy."""
    console = Console(stderr=True)
    with report_errors("evaluate"):
        if sum((model is not None, pictures is not None, training, noise)) != 1:
            raise EvaluationError("name one of --model, --pictures, --training and --noise")
        check_precision(precision)
        require_packages("torchmetrics")  # before spending minutes on images
        evaluator = Evaluator(data, features, model, device=device, batch=batch)
        if pictures is not None:
            measurement = evaluator.baseline_measurement("pictures", samples, seed)
            result, count = _score_folder(evaluator, pictures, measurement)
        else:
            if evaluator.model is not None:
                measurement = _model_measurement(
                    evaluator, sampler, steps, samples, eta, guidance_scale, seed, precision
                )
            else:
                measurement = evaluator.baseline_measurement(TRAINING if training else NOISE, samples, seed)
            with progress(console, describe(measurement), samples, "images") as advance:
                result, count = evaluator.measure(measurement, advance), samples
        _warn_if_unreliable(console, count, len(evaluator.test))
        _print_result(measurement, result, count, evaluator, as_json)


def _model_measurement(
    evaluator: Evaluator,
    sampler: str | None,
    steps: int | None,
    samples: int,
    eta: float,
    guidance_scale: float | None,
    seed: int,
    precision: str,
) -> Measurement:
    """A measurement of the model; settings that are not given are its card's."""
    assert evaluator.model is not None
    default = evaluator.model.card.default
    return evaluator.model_measurement(
        sampler or default.sampler,
        steps or default.steps,
        samples,
        eta=eta,
        guidance_scale=guidance_scale or default.guidance_scale,
        seed=seed,
        arithmetic=precision,
    )


def _score_folder(evaluator: Evaluator, folder: Path, measurement: Measurement) -> tuple[Result, int]:
    """Score images from a folder, in an order determined by the seed; also returns how many there were."""
    started = perf_counter()
    dataset = load_dataset(folder, min(evaluator.space.card.image_shape[1:]))
    chosen = shuffle(dataset, measurement.seed, measurement.samples)
    requested = class_indices(chosen.classes.tolist(), chosen.labels, evaluator.space.card.labels)
    return evaluator.score_images(chosen.images, requested, measurement.seed, started), len(chosen)


def describe(measurement: Measurement) -> str:
    """One line for people: "5,000 by ddim, 10 steps, float32"."""
    if measurement.source != MODEL:
        return f"{measurement.samples:,} of {measurement.source}"
    guidance = f", guidance {measurement.guidance_scale:g}" if is_guided(measurement.guidance_scale) else ""
    return (
        f"{measurement.samples:,} by {measurement.sampler}, {measurement.steps} steps{guidance}, "
        f"{measurement.arithmetic}"
    )


def _warn_if_unreliable(console: Console, images: int, test: int) -> None:
    for number, name in ((images, "images"), (test, "test images")):
        if number < RELIABLE_COUNT:
            console.print(
                f"warning: {number:,} {name} are fewer than {RELIABLE_COUNT:,}: FID is biased upwards and comparable "
                "only with the FID of equally many images",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )


def _print_result(measurement: Measurement, result: Result, count: int, evaluator: Evaluator, as_json: bool) -> None:
    if as_json:
        values = {**asdict(measurement), **asdict(result), "samples": count, "reference": len(evaluator.test)}
        typer.echo(json.dumps(values))
        return
    table = Table(show_header=False, title=describe(measurement), title_justify="left")
    accuracy = f"{result.class_accuracy:.2%}" if result.class_accuracy is not None else "– (no labels)"
    for name, value in (
        ("FID", f"{result.fid:.5g}"),
        ("KID", f"{result.kid:.4g} ± {result.kid_std:.2g}"),
        ("precision", f"{result.precision:.4f}"),
        ("recall", f"{result.recall:.4f}"),
        ("class accuracy", accuracy),
        ("compared with", f"{len(evaluator.test):,} test images of {evaluator.test.source}"),
        ("evaluations per image and guidance branch", str(result.evaluations) if result.evaluations else "–"),
        ("seconds", f"{result.seconds:.0f}"),
    ):
        table.add_row(name, value)
    Console().print(table)
