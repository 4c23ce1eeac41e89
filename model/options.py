"""What the options of the programs here have in common. No torch: the front end's programs use it too."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

SHOWN = 80  # characters of a refused value


class Program(TyperGroup):
    """Commands whose complaint about an option says the value that was given, too."""

    def invoke(self, ctx: Any) -> Any:
        """As ever."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError  # here: it takes long to load

            if isinstance(error.__cause__, ValidationError):
                given = repr(error.__cause__.errors()[0]["input"])[:SHOWN]
                error.message = f"{given}: {error.message}"
            raise


def option(*names: str, help: str, **limits: Any) -> typer.models.OptionInfo:
    """An option that is also an environment variable, DENOISED_ and its name."""
    variable = "DENOISED_" + names[0].partition("/")[0].removeprefix("--").replace("-", "_").upper()
    made: typer.models.OptionInfo = typer.Option(*names, help=help, envvar=variable, **limits)
    return made
