"""The commands that measure: `denoised train-features`, `denoised evaluate`, and `make quality`'s sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.errors import EvaluationError, ModelError
from denoised.model.evaluation import feature_training
from denoised.model.evaluation.feature_training import FeatureTraining, splits
from denoised.model.evaluation.features import FASHION_FEATURES, save_features
from denoised.model.evaluation.metrics import ENOUGH, PRECISIONS, need
from denoised.model.evaluation.quality import (
    MODEL,
    NOISE,
    SWEEP_SAMPLES,
    TRAINING,
    Bench,
    Measurement,
    Result,
    class_indices,
    headline,
    measure,
    read_rows,
    sweep,
)
from denoised.model.evaluation.quality_report import TABLE, Subject, write_report
from denoised.model.options import option
from denoised.model.progress import progress
from denoised.model.serving.loading import ZOO
from denoised.model.training.data import load_dataset

Data = Annotated[
    Path, option("--data", help="Fashion-MNIST's IDX files, or a folder with one sub-folder of images per class")
]
FeaturesFolder = Annotated[
    Path,
    option(
        "--features",
        help="a folder that denoised train-features wrote",
        show_default="the bundled one, Fashion-MNIST's",
    ),
]
Precision = Annotated[str, option("--precision", help=f"of the network's arithmetic: {', '.join(PRECISIONS)}")]
Device = Annotated[str, option("--device", help="cpu, cuda, mps")]


def train_features(
    data: Data,
    out: Annotated[Path, option("--out", help="the folder for the network and its card")],
    size: Annotated[int, option("--size", help="side of the pictures, for a folder of images", min=8)] = 64,
    epochs: Annotated[int, option("--epochs", help="how often each image is seen", min=1)] = FeatureTraining.epochs,
    batch: Annotated[int, option("--batch", help="images per step", min=2)] = FeatureTraining.batch,
    learning_rate: Annotated[
        float, option("--learning-rate", help="at its highest", min=0.0)
    ] = FeatureTraining.learning_rate,
    shift: Annotated[
        int, option("--shift", help="pixels that images are moved at most", min=0)
    ] = FeatureTraining.shift,
    flip: Annotated[
        bool, option("--flip/--no-flip", help="mirror half of the images; not for digits or text")
    ] = FeatureTraining.flip,
    seed: Annotated[int, option("--seed", help="of weights, order and augmentation")] = FeatureTraining.seed,
    precision: Precision = FeatureTraining.precision,
) -> None:
    """Train the small network in whose features `denoised evaluate` compares pictures."""
    console = Console()
    with _refusals("train-features"):
        _check_precision(precision)
        config = FeatureTraining(
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            shift=shift,
            flip=flip,
            seed=seed,
            precision=precision,
        )
        training, test = splits(data, size)
        started = perf_counter()
        with progress(console, "training features", config.steps(len(training)), "steps") as advanced:
            space = feature_training.train_features(training, test, config, lambda *_: advanced(1))
        save_features(out, space)
        console.print(
            f"{space.card.test_accuracy:.2%} of {len(test):,} test images right after "
            f"{perf_counter() - started:.0f} s. Written: {out}",
            highlight=False,
            soft_wrap=True,
        )


def evaluate(
    data: Data,
    model: Annotated[Path | None, option("--model", help="a model folder whose pictures are measured")] = None,
    pictures: Annotated[
        Path | None, option("--pictures", help="or: pictures that are there, one sub-folder per class")
    ] = None,
    training: Annotated[bool, option("--training", help="or: training images, for comparison")] = False,
    noise: Annotated[bool, option("--noise", help="or: uniform noise, for comparison")] = False,
    features: FeaturesFolder = FASHION_FEATURES,
    samples: Annotated[int, option("--samples", help="pictures that are made, or taken", min=1)] = 10_000,
    sampler: Annotated[str | None, option("--sampler", help=f"{', '.join(SAMPLERS)} (default: the card's)")] = None,
    steps: Annotated[int | None, option("--steps", help="steps of the sampler (default: the card's)", min=1)] = None,
    eta: Annotated[float, option("--eta", help="noise of ddim, 0 … 1")] = 0.0,
    guidance_scale: Annotated[
        float | None, option("--guidance-scale", help="1 = off … 20 (default: the card's)", min=1.0, max=20.0)
    ] = None,
    seed: Annotated[int, option("--seed", help="of the first picture; the next has one more")] = 0,
    batch: Annotated[int, option("--batch", help="images in one evaluation of the network", min=1)] = 64,
    precision: Precision = "float32",
    device: Device = "cpu",
    as_json: Annotated[bool, option("--json", help="print one JSON object, and nothing else on stdout")] = False,
) -> None:
    """Measure pictures against the test images of a data set: FID, KID, precision, recall, class accuracy."""
    console = Console(stderr=True)
    with _refusals("evaluate"):
        if sum((model is not None, pictures is not None, training, noise)) != 1:
            raise EvaluationError("name one of --model, --pictures, --training and --noise")
        _check_precision(precision)
        need("torchmetrics")  # before minutes are spent on pictures
        bench = Bench(data, features, model, device=device, batch=batch)
        if pictures is not None:
            question = bench.comparison("pictures", samples, seed)
            answer, count = _judged(bench, pictures, question)
        else:
            if bench.model is not None:
                default = bench.model.card.default
                question = bench.question(
                    sampler or default.sampler,
                    steps or default.steps,
                    samples,
                    eta=eta,
                    guidance_scale=guidance_scale or default.guidance_scale,
                    seed=seed,
                    arithmetic=precision,
                )
            else:
                question = bench.comparison(TRAINING if training else NOISE, samples, seed)
            answer, count = _answered(bench, question, console), samples
        _warn_of_few(console, count, len(bench.test))
        _print(question, answer, count, bench, as_json)


def quality(
    data: Data,
    model: Annotated[Path, option("--model", help="the model folder that is measured")] = ZOO / "fashion-mnist",
    features: FeaturesFolder = FASHION_FEATURES,
    out: Annotated[Path, option("--out", help="the folder of quality.csv, quality.md, pictures/quality.png")] = Path(
        "docs"
    ),
    samples: Annotated[int, option("--samples", help="pictures for each row of the sweep", min=4)] = SWEEP_SAMPLES,
    samplers: Annotated[str, option("--samplers", help="comma-separated (default: every sampler)")] = "",
    precision: Precision = "float32",
    batch: Annotated[
        int, option("--batch", help="images in one evaluation of the network; best a divisor of --samples", min=1)
    ] = 50,
    compiled: Annotated[
        bool, option("--compile", help="compile the network first: faster, takes a minute and a C++ compiler")
    ] = False,
    measuring: Annotated[
        bool, option("--measure/--no-measure", help="or only write the document from the rows that are there")
    ] = True,
    device: Device = "cpu",
) -> None:
    """Measure a model under every sampler and write docs/quality.md; goes on where it was stopped."""
    console = Console()
    with _refusals("quality"):
        _check_precision(precision)
        need("torchmetrics", "matplotlib")
        bench = Bench(data, features, model, device=device, batch=batch, compiled=compiled)
        assert bench.model is not None
        names = [name for name in samplers.split(",") if name] or list(SAMPLERS)
        subject = Subject(
            name=bench.model.card.name,
            weights=bench.weights,
            features=bench.features,
            model=read_card_file(model),
            space=bench.space.card,
            samples=samples,
        )
        questions = [*headline(bench, bench.model, precision), *sweep(bench, bench.model, names, samples, precision)]
        path = out / TABLE
        out.mkdir(parents=True, exist_ok=True)
        before = read_rows(path)
        for question in questions:
            if measuring and question not in before:
                with progress(console, _told(question), question.samples, "pictures") as advanced:
                    answer = measure(bench, path, question, advanced)
                console.print(
                    f"{_told(question)}: FID {answer.fid:.4g}, {answer.seconds:.0f} s", highlight=False, soft_wrap=True
                )
                write_report(out, subject, read_rows(path))
        write_report(out, subject, read_rows(path))


def _warn_of_few(console: Console, pictures: int, test: int) -> None:
    for number, name in ((pictures, "pictures"), (test, "test images")):
        if number < ENOUGH:
            console.print(
                f"warning: {number:,} {name} are fewer than {ENOUGH:,}: FID is biased upwards, and compares only with "
                "FID of as many",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )


def _judged(bench: Bench, folder: Path, question: Measurement) -> tuple[Result, int]:
    """Pictures from a folder, in an order that the seed decides; and how many there were."""
    started = perf_counter()
    found = load_dataset(folder, min(bench.space.card.image_shape[1:]))
    kept = feature_training.shuffled(found, question.seed, question.samples)
    asked = class_indices(kept.classes.tolist(), kept.labels, bench.space.card.labels)
    return bench.judge(kept.images, asked, question.seed, started), len(kept)


def _answered(bench: Bench, question: Measurement, console: Console) -> Result:
    with progress(console, _told(question), question.samples, "pictures") as advanced:
        return bench.answer(question, advanced)


def _told(question: Measurement) -> str:
    if question.source != MODEL:
        return f"{question.samples:,} of {question.source}"
    guided = f", guidance {question.guidance_scale:g}" if question.guidance_scale != 1.0 else ""
    return f"{question.samples:,} by {question.sampler}, {question.steps} steps{guided}, {question.arithmetic}"


def _print(question: Measurement, answer: Result, count: int, bench: Bench, as_json: bool) -> None:
    figures = {**asdict(question), **asdict(answer), "samples": count, "reference": len(bench.test)}
    if as_json:
        typer.echo(json.dumps(figures))
        return
    table = Table(show_header=False, title=_told(question), title_justify="left")
    accuracy = f"{answer.class_accuracy:.2%}" if answer.class_accuracy is not None else "– (no labels)"
    for name, value in (
        ("FID", f"{answer.fid:.5g}"),
        ("KID", f"{answer.kid:.4g} ± {answer.kid_std:.2g}"),
        ("precision", f"{answer.precision:.4f}"),
        ("recall", f"{answer.recall:.4f}"),
        ("class accuracy", accuracy),
        ("against", f"{len(bench.test):,} test images of {bench.test.source}"),
        ("evaluations an image and guidance branch", str(answer.evaluations) if answer.evaluations else "–"),
        ("seconds", f"{answer.seconds:.0f}"),
    ):
        table.add_row(name, value)
    Console().print(table)


@contextmanager
def _refusals(command: str) -> Iterator[None]:
    """One line on stderr and exit code 1 for what was refused."""
    try:
        yield
    except (ModelError, OSError) as error:
        Console(stderr=True).print(
            f"denoised {command}: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from error


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise EvaluationError(f"precision = {precision!r} is not known (known: {', '.join(PRECISIONS)})")
