"""What the options of the programs here have in common."""

from __future__ import annotations

from typing import Any

import typer


def option(*names: str, help: str, **limits: Any) -> typer.models.OptionInfo:
    """An option that is also an environment variable, DENOISED_ and its name."""
    variable = "DENOISED_" + names[0].partition("/")[0].removeprefix("--").replace("-", "_").upper()
    made: typer.models.OptionInfo = typer.Option(*names, help=help, envvar=variable, **limits)
    return made
