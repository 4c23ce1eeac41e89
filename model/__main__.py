"""`denoised train`, `train-features`, `evaluate` and `likelihood`: the programs that train and measure."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from denoised.model.diffusion.noise import BETAS
from denoised.model.diffusion.predictions import PREDICTION_TYPES
from denoised.model.errors import ModelError
from denoised.model.evaluation import evaluate_cli as measuring
from denoised.model.evaluation import likelihood_cli as judging
from denoised.model.options import Program
from denoised.model.options import option as _option
from denoised.model.serving.loading import load_model
from denoised.model.training import runs
from denoised.model.training.data import UNREADABLE, load_dataset
from denoised.model.training.recipe import PRESETS, TrainingConfig, check
from denoised.model.training.trainer import Trainer

app = typer.Typer(cls=Program, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def _program() -> None:
    """Train noise-predicting models and measure them."""


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        Path,
        _option(
            "--data",
            help="a folder with Fashion-MNIST's IDX files or one sub-folder of images per class; or the word digits",
        ),
    ],
    out: Annotated[Path, _option("--out", help="the run's folder; the model ends up in OUT/model")],
    resume: Annotated[bool, _option("--resume", help="go on from the newest checkpoint in OUT")] = False,
    preset: Annotated[
        str | None, _option("--preset", help=f"the network and what goes with it: {', '.join(PRESETS)}")
    ] = None,
    images: Annotated[int | None, _option("--images", help="images to see in all")] = None,
    batch: Annotated[int | None, _option("--batch", help="images per step")] = None,
    accumulate: Annotated[
        int | None, _option("--accumulate", help="parts that a batch is worked off in, for less memory")
    ] = None,
    size: Annotated[int | None, _option("--size", help="side of the pictures, for a folder of images [64]")] = None,
    background: Annotated[
        str | None, _option("--background", help="colour behind transparent pictures: a name, or #rrggbb [white]")
    ] = None,
    unreadable: Annotated[
        str | None, _option("--unreadable", help=f"broken files: {', '.join(UNREADABLE)} [refuse]")
    ] = None,
    flip: Annotated[
        bool | None, _option("--flip/--no-flip", help="mirror every other image: not for digits or letters [no]")
    ] = None,
    prediction_type: Annotated[
        str | None, _option("--prediction", help=f"what it predicts: {', '.join(PREDICTION_TYPES)}")
    ] = None,
    beta_schedule: Annotated[str | None, _option("--schedule", help=f"noise schedule: {', '.join(BETAS)}")] = None,
    zero_snr: Annotated[
        bool | None, _option("--zero-snr/--no-zero-snr", help="end the schedule in pure noise; not with epsilon [no]")
    ] = None,
    learning_rate: Annotated[float | None, _option("--learning-rate", help="at its highest")] = None,
    lr_schedule: Annotated[str | None, _option("--lr-schedule", help="cosine or constant")] = None,
    warmup: Annotated[int | None, _option("--warmup", help="steps until the learning rate is reached")] = None,
    min_snr_gamma: Annotated[
        float | None, _option("--min-snr-gamma", help="weight the loss by min-SNR of this γ (5 in its paper) [off]")
    ] = None,
    label_dropout: Annotated[
        float | None, _option("--label-dropout", help="share of images whose label is hidden")
    ] = None,
    ema_decay: Annotated[float | None, _option("--ema-decay", help="of the averaged weights")] = None,
    seed: Annotated[int | None, _option("--seed", help="of weights, order and noise")] = None,
    precision: Annotated[str | None, _option("--precision", help="auto (measured), float32 or bfloat16")] = None,
    threads: Annotated[
        int | None, _option("--threads", help="CPU threads, 0 = one a core [1 for tiny, 0 for others]")
    ] = None,
    init: Annotated[Path | None, _option("--init", help="a model folder of the same shape to start from")] = None,
    device: Annotated[str, _option("--device", help="cpu, cuda, mps")] = "cpu",
    sample_every: Annotated[int, _option("--sample-every", help="images between grids of samples", min=1)] = 51_200,
    checkpoint_every: Annotated[int, _option("--checkpoint-every", help="images between checkpoints", min=1)] = 25_600,
) -> None:
    """Train a model. Ctrl-C saves a checkpoint and stops; --resume goes on exactly from there.

    Exit code 130 after Ctrl-C, 143 after SIGTERM, as shells say it.
    """
    console = Console()
    settings = {field.name for field in dataclasses.fields(TrainingConfig)}
    given = {name: value for name, value in context.params.items() if name in settings and value is not None}
    try:
        trainer = _trainer(data, out, device, resume, init, given)
        for skipped in trainer.dataset.skipped:
            _complain(f"skipped {skipped}")
        parameters = sum(p.numel() for p in trainer.net.parameters())
        console.print(
            f"{len(trainer.dataset):,} images of {len(trainer.dataset.labels)} classes ({trainer.dataset.source}) · "
            f"{parameters / 1e6:.1f} M parameters · {str(trainer.amp_dtype).removeprefix('torch.')} · "
            f"step {trainer.step:,}",
            soft_wrap=True,
        )
        habits = runs.RunSchedule(checkpoint_every=checkpoint_every, sample_every=sample_every)
        signum = runs.run(trainer, out, habits, console)
    except (ModelError, OSError) as error:
        _complain(f"denoised train: {error}")
        raise typer.Exit(1) from error
    if signum is not None:
        console.print(f"Stopped at step {trainer.step:,}; go on with --resume.", highlight=False)
        raise typer.Exit(128 + signum)
    console.print("Done. Serve it under a name of its own:", highlight=False)
    for line in advice(out):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def advice(out: Path) -> list[str]:
    """Lines for a shell that serve a finished run: a model is served under its folder's name."""
    model = f"models/my-{out.resolve().name}"
    copy, serve = ["cp", "-r", str(out / "model"), model], ["denoised", "serve", "--model", model]
    return ["mkdir -p models", shlex.join(copy), shlex.join(serve)]


def _trainer(data: Path, out: Path, device: str, resume: bool, init: Path | None, given: dict[str, object]) -> Trainer:
    config = runs.resumed_config(out, given) if resume else TrainingConfig.of(given)
    check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    dataset = load_dataset(data, config.size, background=config.background, unreadable=config.unreadable)
    if not resume:
        runs.start(config, out)
    trainer = Trainer(config, dataset, device)
    if resume:
        runs.resume(trainer, out)
        runs.store_config(config, out)
    elif init is not None:
        trainer.start_from(load_model(init, device=device).unet.state_dict())
    return trainer


def _complain(line: str) -> None:
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)


for _command in (measuring.train_features, measuring.evaluate, measuring.quality, judging.likelihood):
    app.command()(_command)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    app(prog_name="denoised")
