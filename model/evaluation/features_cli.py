"""`denoised train-features`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated

from rich.console import Console

from denoised.command_line.options import option
from denoised.model.command_line import report_errors
from denoised.model.evaluation.cli_options import DataOption, PrecisionOption, check_precision
from denoised.model.evaluation.data_splits import load_splits
from denoised.model.evaluation.feature_training import FeatureTraining, train_feature_network
from denoised.model.evaluation.features import save_features
from denoised.model.progress import progress


def train_features(
    data: DataOption,
    out: Annotated[Path, option("--out", help="the folder for the network and its card")],
    size: Annotated[int, option("--size", help="side length of the images, for a folder of images", min=8)] = 64,
    epochs: Annotated[int, option("--epochs", help="passes over the training images", min=1)] = FeatureTraining.epochs,
    batch: Annotated[int, option("--batch", help="images per step", min=2)] = FeatureTraining.batch,
    learning_rate: Annotated[
        float, option("--learning-rate", help="peak learning rate", min=0.0)
    ] = FeatureTraining.learning_rate,
    shift: Annotated[
        int, option("--shift", help="largest random shift of the images, in pixels", min=0)
    ] = FeatureTraining.shift,
    flip: Annotated[
        bool, option("--flip/--no-flip", help="mirror half of the images at random; not for digits or letters")
    ] = FeatureTraining.flip,
    seed: Annotated[
        int, option("--seed", help="seed of the initial weights, the order of the images and the augmentation")
    ] = FeatureTraining.seed,
    precision: PrecisionOption = FeatureTraining.precision,
) -> None:
    """Train the small network whose features `denoised evaluate` compares images in."""
    with report_errors("train-features"):
        check_precision(precision)
        config = FeatureTraining(
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            shift=shift,
            flip=flip,
            seed=seed,
            precision=precision,
        )
        _train_and_save(data, out, size, config, Console())


def _train_and_save(data: Path, out: Path, size: int, config: FeatureTraining, console: Console) -> None:
    training, test = load_splits(data, size)
    started = perf_counter()
    with progress(console, "training features", config.steps(len(training)), "steps") as advance:
        space = train_feature_network(training, test, config, lambda *_: advance(1))
    save_features(out, space)
    console.print(
        f"{space.card.test_accuracy:.2%} of {len(test):,} test images right after "
        f"{perf_counter() - started:.0f} s. Written to {out}",
        highlight=False,
        soft_wrap=True,
    )
