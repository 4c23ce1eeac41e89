"""Options of the server's commands. Each is also an environment variable, DENOISED_ and its name."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from denoised.model.options import CommandGroup


def env(name: str, help: str, *flags: str, **limits: Any) -> Any:
    """An option that the environment variable DENOISED_`name` also sets."""
    return typer.Option(*flags, envvar=f"DENOISED_{name}", help=help, **limits)


class ServerCommands(CommandGroup):
    """A group whose commands print plain help: typer's boxes truncate variable names at 80 columns and without a
    terminal, and read square brackets as markup."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if isinstance(command, TyperCommand):
            command.rich_markup_mode = None
        return command


AsJson = Annotated[bool, env("JSON", "print JSON on stdout, everything else on stderr", "--json")]
