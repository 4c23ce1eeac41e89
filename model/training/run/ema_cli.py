"""`denoised ema`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from denoised.command_line.options import env, option
from denoised.model.checkpoints.card_file import read_card_file, write_card_file
from denoised.model.checkpoints.folders import UNET_CONFIG
from denoised.model.checkpoints.text_to_image.pipeline_writing import save_weights
from denoised.model.checkpoints.text_to_image.pipelines import is_text_pipeline
from denoised.model.checkpoints.weight_files import ENCODER, find_weights
from denoised.model.command_line import report_errors
from denoised.model.errors import TrainingError
from denoised.model.training.power_averages import MAX_WIDTH, MIN_WIDTH
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.snapshots import AveragedWeights, average_of_width


def ema(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run of denoised train or train-text")],
    # DENOISED_WIDTH is that of pictures.
    width: Annotated[
        float, env("EMA_WIDTH", f"σ_rel of the average, {MIN_WIDTH} … {MAX_WIDTH}; larger is longer", "--width")
    ],
    out: Annotated[Path, option("--out", help="the model folder to write")],
) -> None:
    """Write the model of a run with another moving average of its weights, of any width, after training.

    The average is combined from the snapshots of the run (Karras et al. 2024). The run may be in progress; its folder
    is only read.
    """
    with report_errors("ema"):
        folder = RunFolder(run)
        averaged = average_of_width(folder, width)
        write_averaged_model(folder.model, out, averaged, width)
        Console().print(
            f"{out}: width {width:g} at step {averaged.step:,}, combined from {len(averaged.combination.weights)} "
            f"averages; the profile is off by {averaged.combination.error:.1%}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def write_averaged_model(model: Path, out: Path, averaged: AveragedWeights, width: float) -> None:
    """Copy the model folder of a run, with other weights in the files of the trained networks.

    Raises:
        TrainingError: if the folder holds no model, is the one to write, or is of another network.
    """
    if not (model / UNET_CONFIG).exists():
        raise TrainingError(f"{model} holds no model: the run has not saved one yet")
    if out.resolve() == model.resolve():
        raise TrainingError(f"--out {out} is the model of the run: name another folder")
    files = {path: _averaged(path, prefix, averaged) for path, prefix in _weight_files(model).items()}
    shutil.copytree(model, out, dirs_exist_ok=True)
    for path, tensors in files.items():
        save_weights(out / path.relative_to(model), tensors)
    card = read_card_file(out)
    training = {name: value for name, value in card.training.items() if name != "ema_decay"}
    training |= {"images_seen": training["batch"] * averaged.step, "steps": averaged.step, "ema_width": width}
    write_card_file(out, card.model_copy(update={"training": training}))


def _averaged(path: Path, prefix: str, averaged: AveragedWeights) -> dict[str, Tensor]:
    """The tensors of a weight file, averaged, in the types in which they are stored."""
    stored = load_file(path)
    if missing := sorted(name for name in stored if prefix + name not in averaged.tensors):
        raise TrainingError(f"{path} is of another network than the snapshots, which lack {missing[0]}")
    return {name: averaged.tensors[prefix + name].to(value.dtype) for name, value in stored.items()}


def _weight_files(folder: Path) -> dict[Path, str]:
    """The weight files of the trained networks, with what stands before their names in the snapshots."""
    unet = find_weights(folder / UNET_CONFIG.parent)
    if not is_text_pipeline(folder):
        return {unet: ""}
    return {unet: "unet.", find_weights(folder / "text_encoder", ENCODER): "text_encoder."}
