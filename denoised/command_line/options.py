"""Options of commands. Each can also be set by an environment variable, DENOISED_ and its name."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from denoised.command_line.console import FAILED, print_error
from denoised.command_line.rejected_values import describe_rejected_value

SHOWN_CHARACTERS = 80  # of a rejected value
USAGE = 2  # exit code
# Kubernetes sets X_PORT=tcp://10.0.0.1:80 in every container for each Service named x.
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://.*")


class CommandGroup(TyperGroup):
    """Commands with plain help. An error of usage is one line that includes the rejected value.

    typer's boxes truncate variable names at 80 columns and without a terminal, and read square brackets as markup.
    """

    def main(self, *arguments: Any, **settings: Any) -> NoReturn:
        """Run the program and exit."""
        _run_and_exit(super().main, *arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            _explain(error, ctx)
            raise

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name."""
        command = super().get_command(ctx, cmd_name)
        if isinstance(command, TyperCommand):
            command.rich_markup_mode = None
        return command


class SingleCommand(TyperCommand):
    """A program's only command, with the error messages of `CommandGroup`."""

    def main(self, *arguments: Any, **settings: Any) -> NoReturn:
        """Run the program and exit."""
        _run_and_exit(super().main, *arguments, **settings)

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Parse the arguments."""
        try:
            return super().make_context(*arguments, **settings)
        except typer.BadParameter as error:
            _explain(error, error.ctx)
            raise


def _run_and_exit(main: Callable[..., Any], *arguments: Any, **settings: Any) -> NoReturn:
    """Call click's `main`, print an error of usage as one line, and exit."""
    try:
        code = main(*arguments, **{**settings, "standalone_mode": False})
    except TyperException as error:  # the base of every error of usage
        context = getattr(error, "ctx", None)
        text = " ".join(error.format_message().split()).removesuffix(".")
        if context is not None and text:  # else no command was given, and the help has been printed
            path = context.command_path
            print_error(path.removeprefix("denoised").strip(), f"{text} (see {path} --help)")
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: typer.BadParameter, context: Any) -> None:
    """Put the rejected value before the message. A variable that Kubernetes has set is one line of its own."""
    from pydantic import ValidationError  # slow to import, so only here

    link = service_link(error.param)
    if link is not None:
        typer.echo(f"{(error.ctx or context).command_path}: {link}", err=True)
        raise typer.Exit(USAGE) from error
    if isinstance(error.__cause__, ValidationError):
        first = error.__cause__.errors()[0]
        value = repr(first["input"])[:SHOWN_CHARACTERS]
        said = error.message.replace("Value error, ", "")
        error.message = describe_rejected_value(first, value) or (
            said if said.startswith(value) else f"{value}: {said}"
        )


def service_link(parameter: Any) -> str | None:
    """The explanation, if the variable of an option has a value that Kubernetes sets for a Service."""
    names = getattr(parameter, "envvar", None) or []
    for name in [names] if isinstance(names, str) else names:
        value = os.environ.get(name, "")
        if name.endswith("_PORT") and SERVICE_LINK.fullmatch(value):
            service = name.removesuffix("_PORT").lower().replace("_", "-")
            return (
                f"{name}={value} comes from Kubernetes, which sets it for a Service named {service!r}: set "
                f"enableServiceLinks: false in the pod's spec, rename the Service, or pass {parameter.opts[0]}"
            )
    return None


def env(name: str, help: str, *flags: str, **limits: Any) -> Any:
    """An option that the environment variable DENOISED_`name` also sets."""
    return typer.Option(*flags, envvar=f"DENOISED_{name}", help=help, **limits)


def option(*names: str, help: str, **limits: Any) -> typer.models.OptionInfo:
    """A typer option that can also be set by an environment variable, named after its first flag."""
    made: typer.models.OptionInfo = typer.Option(*names, help=help, envvar=environment_variable(names[0]), **limits)
    return made


def environment_variable(flag: str) -> str:
    """`--sample-every` → `DENOISED_SAMPLE_EVERY`."""
    return "DENOISED_" + flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()


AsJson = Annotated[bool, env("JSON", "print JSON on stdout, everything else on stderr", "--json")]
