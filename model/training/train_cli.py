"""`denoised train`."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer
from rich.console import Console

from denoised.model.command_line import print_to_stderr, report_errors
from denoised.model.errors import UnreadableImages
from denoised.model.options import environment_variable, option
from denoised.model.serving.loading import load_model
from denoised.model.training.data import load_dataset
from denoised.model.training.presets import FROM_PRESET
from denoised.model.training.run_checkpoints import load_newest_checkpoint
from denoised.model.training.run_folder import RunFolder
from denoised.model.training.trainer import Trainer
from denoised.model.training.training_config import TrainingConfig, settings, validate
from denoised.model.training.training_run import RunSchedule, run_training


def _with_setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with one option for each setting of `TrainingConfig`; `given` receives those that are set."""

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        values = {name: arguments.pop(name) for name in settings()}
        command(**arguments, given={name: value for name, value in values.items() if value is not None})

    parameters = inspect.signature(command, eval_str=True).parameters.values()
    own = [parameter for parameter in parameters if parameter.name != "given"]
    # typer reads the options from the signature.
    wrapper.__signature__ = inspect.Signature([*own, *_setting_parameters()])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {}
    return wrapper


def _setting_parameters() -> list[inspect.Parameter]:
    """One keyword parameter for each setting; None means that the option is not given."""
    types = get_type_hints(TrainingConfig)
    parameters = []
    for name, setting in settings().items():
        flag = "--" + (setting.flag or name.replace("_", "-"))
        if types[name] is bool:
            flag += flag.replace("--", "/--no-", 1)
        help = f"{setting.help}: {', '.join(setting.choices)}" if setting.choices else setting.help
        default = typer.Option(None, flag, envvar=environment_variable(flag), help=f"{help} [{_default_of(name)}]")
        annotation = types[name] | None
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return parameters


def _default_of(name: str) -> str:
    """The default of a setting as the help text shows it."""
    if name in FROM_PRESET:
        return "the preset's"
    default = getattr(TrainingConfig, name)
    if default is None or isinstance(default, bool):
        return "on" if default else "off"
    return str(default)


@_with_setting_options
def train(
    *,
    data: Annotated[
        Path,
        option(
            "--data",
            help="a folder with Fashion-MNIST's IDX files, or with one sub-folder of images per class; or the "
            "word digits",
        ),
    ],
    out: Annotated[Path, option("--out", help="the folder of the run; the model is written to OUT/model")],
    resume: Annotated[bool, option("--resume", help="continue from the newest checkpoint in OUT")] = False,
    init: Annotated[Path | None, option("--init", help="a model folder of the same shape to start from")] = None,
    device: Annotated[str, option("--device", help="cpu, cuda or mps")] = "cpu",
    sample_every: Annotated[
        int, option("--sample-every", help="images between two grids of samples", min=1)
    ] = RunSchedule.sample_every,
    checkpoint_every: Annotated[
        int, option("--checkpoint-every", help="images between two checkpoints", min=1)
    ] = RunSchedule.checkpoint_every,
    given: dict[str, Any],
) -> None:
    """Train a model. Ctrl-C saves a checkpoint and stops; --resume continues exactly from there.

    The exit code is 130 after Ctrl-C and 143 after SIGTERM, as shells expect.
    """
    console = Console()
    folder = RunFolder(out)
    with report_errors("train"):
        trainer = _make_trainer(folder, data, device, init, given, resume)
        _print_summary(trainer, console)
        schedule = RunSchedule(checkpoint_every=checkpoint_every, sample_every=sample_every)
        signum = run_training(trainer, folder, schedule, console)
    if signum is not None:
        console.print(f"Stopped at step {trainer.step:,}; continue with --resume.", highlight=False)
        raise typer.Exit(128 + signum)
    console.print("Done. To serve the model under a name of its own:", highlight=False)
    for line in serving_commands(out):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def _make_trainer(
    folder: RunFolder, data: Path, device: str, init: Path | None, given: dict[str, Any], resume: bool
) -> Trainer:
    """The trainer of a new run, or of the run in the folder as its newest checkpoint has it."""
    config = folder.config_to_resume(given) if resume else TrainingConfig.of(given)
    validate(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    if not resume:
        folder.check_new()
    try:
        dataset = load_dataset(data, config.size, background=config.background, unreadable=config.unreadable)
    except UnreadableImages as error:
        raise UnreadableImages(f"{error}, or pass --unreadable skip") from error
    if not resume:
        folder.create(config)
    trainer = Trainer(config, dataset, device)
    if resume:
        load_newest_checkpoint(trainer, folder)
        folder.write_config(config)
    elif init is not None:
        trainer.start_from(load_model(init, device=device).unet.state_dict())
    return trainer


def _print_summary(trainer: Trainer, console: Console) -> None:
    for file in trainer.dataset.skipped:
        print_to_stderr(f"skipped {file}")
    warning = trainer.config.warm_up_warning()
    if warning is not None:
        print_to_stderr(warning)
    parameters = sum(p.numel() for p in trainer.net.parameters())
    console.print(
        f"{len(trainer.dataset):,} images of {len(trainer.dataset.labels)} classes ({trainer.dataset.source}) · "
        f"{parameters / 1e6:.1f} M parameters · {str(trainer.amp_dtype).removeprefix('torch.')} · "
        f"step {trainer.step:,}",
        soft_wrap=True,
    )


def serving_commands(out: Path) -> list[str]:
    """Shell commands that serve a finished run. A model is served under its folder's name, so it is copied."""
    model = f"models/my-{out.absolute().name}"
    copy, serve = ["cp", "-r", str(out / "model"), model], ["denoised", "serve", "--model", model]
    return ["mkdir -p models", shlex.join(copy), shlex.join(serve)]
