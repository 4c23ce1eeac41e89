"""Options that several commands share. Every one is also an environment variable, DENOISED_ and its name."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

DEFAULT_URL = "http://127.0.0.1:8000"
SCHEMES = ("http://", "https://")


def env(name: str, help: str, *flags: str, **limits: Any) -> Any:
    """An option that can also be set as DENOISED_`name`."""
    return typer.Option(*flags, envvar=f"DENOISED_{name}", help=help, **limits)


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


class PlainHelp(Program):
    """A group whose commands explain themselves in plain text: the boxes of typer cut off the names of variables where
    there are 80 columns or no terminal, and take what stands in brackets for markup."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if isinstance(command, TyperCommand):
            command.rich_markup_mode = None
        return command


def _http(url: str) -> str:
    """A server's address; what is no URL would be told of as a server that does not answer."""
    if not url.startswith(SCHEMES):
        raise typer.BadParameter(f"{url!r} begins with neither http:// nor https:// (allowed: as {DEFAULT_URL})")
    return url


Url = Annotated[str, env("URL", "the server", callback=_http)]
Key = Annotated[str | None, env("API_KEY", "an API key, if the server wants one")]
AsJson = Annotated[bool, env("JSON", "JSON on stdout, everything else on stderr", "--json")]
