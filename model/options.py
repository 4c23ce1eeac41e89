"""Command-line options that are also environment variables. Imports no torch: the front end's commands use it too."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

SHOWN_CHARACTERS = 80  # of a rejected value


class CommandGroup(TyperGroup):
    """Commands whose error message about an option includes the rejected value."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; put the rejected value before the message of a validation error."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError  # slow to import, so only here

            if isinstance(error.__cause__, ValidationError):
                value = repr(error.__cause__.errors()[0]["input"])[:SHOWN_CHARACTERS]
                error.message = f"{value}: {error.message}"
            raise


def option(*names: str, help: str, **limits: Any) -> typer.models.OptionInfo:
    """A typer option that can also be set by an environment variable, named after its first flag."""
    made: typer.models.OptionInfo = typer.Option(*names, help=help, envvar=environment_variable(names[0]), **limits)
    return made


def environment_variable(flag: str) -> str:
    """`--sample-every` → `DENOISED_SAMPLE_EVERY`."""
    return "DENOISED_" + flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()
