"""The `denoised` command: the commands that call a server, and those that start another program of the package."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from denoised.cli import commands
from denoised.cli.console import EXIT_CODES, refuse
from denoised.cli.options import PlainHelp

SERVE, TRAIN = "Serve", "Train and measure"
PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

# Each program is a package of its own, with dependencies of its own: (command, package, help, panel).
SERVER, WORKER, MODEL = "denoised.app", "denoised.worker", "denoised.model"
PROGRAMS = (
    ("serve", SERVER, "Start everything on this machine: an embedded Valkey, the API and one worker.", SERVE),
    ("api", SERVER, "Start the HTTP front end alone, on a Redis that workers share.", SERVE),
    ("worker", WORKER, "Serve models from the queue.", SERVE),
    ("key", SERVER, "Make an API key.", SERVE),
    ("doctor", SERVER, "Check whether this machine can serve, and say what to do.", SERVE),
    ("train", MODEL, "Train a model.", TRAIN),
    ("train-features", MODEL, "Train the network in whose features pictures are compared.", TRAIN),
    ("evaluate", MODEL, "Measure a model's pictures: FID, KID, …", TRAIN),
    ("likelihood", MODEL, "Bits per dimension of pictures under a model.", TRAIN),
)
# A package that each program needs, and the extra that installs it.
NEEDS = {SERVER: ("fastapi", "server"), WORKER: ("torch", "worker"), MODEL: ("torch", "worker")}
TRAINING_NEEDS = ("torchmetrics", "train")

# Without this, OpenMP's threads spin at each barrier; beside another busy program that slows the network 70 times
# (docs/decisions.md).
TORCH_ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}

cli = typer.Typer(
    name="denoised",
    cls=PlainHelp,
    help="denoised, the denoising daemon: serves noise-predicting diffusion models over HTTP.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denoised {version('denoised')}")
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options that go before a command."""


def _add_program(command: str, package: str, help: str, panel: str) -> None:
    """Add a command that replaces this process by `python -m package`."""

    def run(context: typer.Context) -> None:
        _check_installed(command, package, panel)
        arguments = context.args if package == WORKER else [command, *context.args]
        environment = os.environ if package == SERVER else TORCH_ENVIRONMENT | os.environ
        # -P: a module in the working directory never takes the place of one of ours.
        os.execve(sys.executable, [sys.executable, "-P", "-m", package, *arguments], environment)

    described: Callable[[typer.Context], None] = run
    described.__doc__ = f"{help} See: denoised {command} --help"
    cli.command(command, context_settings=PASSED_ON, add_help_option=False, rich_help_panel=panel)(described)


def _check_installed(command: str, package: str, panel: str) -> None:
    needs = [NEEDS[package], *([TRAINING_NEEDS] if panel == TRAIN else [])]
    for module, extra in needs:
        if importlib.util.find_spec(module) is None:
            refuse(command, f"{module} is not installed: pip install 'denoised[{extra}]'")


for _program in PROGRAMS:
    _add_program(*_program)

cli.add_typer(commands.cli)


def main() -> None:
    """The console script."""
    cli(prog_name="denoised")
