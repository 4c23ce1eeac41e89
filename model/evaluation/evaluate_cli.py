"""`denoised evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from denoised.command_line.options import option
from denoised.model.command_line import report_errors
from denoised.model.diffusion.grids import SPACINGS
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.diffusion.spacings import RATIO_SPACINGS
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.cli_options import (
    DataOption,
    DeviceOption,
    FeaturesOption,
    PrecisionOption,
    check_precision,
    parse_numbers,
)
from denoised.model.evaluation.data_splits import shuffle
from denoised.model.evaluation.evaluator import Evaluator, class_indices
from denoised.model.evaluation.features import FASHION_FEATURES
from denoised.model.evaluation.metrics import RELIABLE_COUNT
from denoised.model.evaluation.quality_table import NOISE, TRAINING, Measurement, Result, describe
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
    guidance_interval: Annotated[
        str | None,
        option("--guidance-interval", help="low,high: noise levels with guidance (default: the card's)"),
    ] = None,
    spacing: Annotated[
        str | None, option("--spacing", help=f"{', '.join((*SPACINGS, *RATIO_SPACINGS))} (default: the card's)")
    ] = None,
    sigma_min: Annotated[float | None, option("--sigma-min", help="lowest noise level of the spacing")] = None,
    sigma_max: Annotated[float | None, option("--sigma-max", help="highest noise level of the spacing")] = None,
    sigmas: Annotated[
        str | None, option("--sigmas", help="the noise levels, highest first, comma-separated, instead of steps")
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
            measurement = evaluator.baseline_measurement(TRAINING if training else NOISE, samples, seed)
            if evaluator.model is not None:
                default = evaluator.default_measurement(samples, steps=steps, seed=seed, arithmetic=precision)
                measurement = _as_asked(
                    default,
                    sampler=sampler,
                    eta=eta,
                    guidance_scale=guidance_scale,
                    guidance_interval=parse_numbers("guidance_interval", guidance_interval, count=2),
                    spacing=spacing,
                    sigma_min=sigma_min,
                    sigma_max=sigma_max,
                    sigmas=parse_numbers("sigmas", sigmas),
                )
            with progress(console, describe(measurement), samples, "images") as advance:
                result, count = evaluator.measure(measurement, advance), samples
        _warn_if_unreliable(console, count, len(evaluator.test))
        _print_result(measurement, result, count, evaluator, as_json)


def _as_asked(default: Measurement, **asked: Any) -> Measurement:
    """A measurement with the card's defaults changed as asked; None leaves a setting to the card.

    The card's noise levels go with its sampler, and its guidance interval with its scale, as in requests.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if given.keys() & {"sampler", "spacing", "sigmas"}:
        default = replace(default, spacing="", sigma_min=None, sigma_max=None, sigmas=())
    if given.keys() & {"sigma_min", "sigma_max"}:
        default = replace(default, sigmas=())
    if "guidance_scale" in given:
        default = replace(default, guidance_interval=())
    if "sigmas" in given:
        given["steps"] = len(given["sigmas"])
    return replace(default, **given)


def _score_folder(evaluator: Evaluator, folder: Path, measurement: Measurement) -> tuple[Result, int]:
    """Score images from a folder, in an order determined by the seed; also returns how many there were."""
    started = perf_counter()
    dataset = load_dataset(folder, min(evaluator.space.card.image_shape[1:]))
    chosen = shuffle(dataset, measurement.seed, measurement.samples)
    requested = class_indices(chosen.classes.tolist(), chosen.labels, evaluator.space.card.labels)
    return evaluator.score_images(chosen.images, requested, measurement.seed, started), len(chosen)


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
        ("evaluations per image", str(result.evaluations) if result.evaluations else "–"),
        ("seconds", f"{result.seconds:.0f}"),
    ):
        table.add_row(name, value)
    Console().print(table)
    if result.class_precision:
        Console().print(_class_table(result, evaluator.space.card.labels))


def _class_table(result: Result, labels: Sequence[str]) -> Table:
    """Precision and recall of each class."""
    table = Table("class", "precision", "recall")
    for label, precision, recall in zip(labels, result.class_precision, result.class_recall, strict=True):
        table.add_row(label, f"{precision:.4f}", f"{recall:.4f}")
    return table
