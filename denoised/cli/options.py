"""Options that several commands share. Each can also be set by an environment variable, DENOISED_ and its name."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

DEFAULT_URL = "http://127.0.0.1:8000"
SCHEMES = ("http://", "https://")


def env(name: str, help: str, *flags: str, **limits: Any) -> Any:
    """An option that the environment variable DENOISED_`name` also sets."""
    return typer.Option(*flags, envvar=f"DENOISED_{name}", help=help, **limits)


SHOWN_CHARACTERS = 80  # of an invalid value


class ClientCommands(TyperGroup):
    """Commands with plain help, whose error about an option contains the given value.

    typer's boxes truncate variable names at 80 columns and without a terminal, and read square brackets as markup.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError  # imported late because it is slow

            if isinstance(error.__cause__, ValidationError):
                given = repr(error.__cause__.errors()[0]["input"])[:SHOWN_CHARACTERS]
                error.message = f"{given}: {error.message}"
            raise

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if isinstance(command, TyperCommand):
            command.rich_markup_mode = None
        return command


def _check_url(url: str) -> str:
    """Reject a text that is not a URL, which would otherwise be reported as a server that does not answer."""
    if not url.startswith(SCHEMES):
        raise typer.BadParameter(f"{url!r} begins with neither http:// nor https:// (example: {DEFAULT_URL})")
    return url


Url = Annotated[str, env("URL", "URL of the server", callback=_check_url)]
Key = Annotated[str | None, env("API_KEY", "API key, if the server requires one")]
AsJson = Annotated[bool, env("JSON", "print JSON on stdout, everything else on stderr", "--json")]
