"""Options that several of the client's commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from denoised.command_line.options import env

DEFAULT_URL = "http://127.0.0.1:8000"
SCHEMES = ("http://", "https://")


def _check_url(url: str) -> str:
    """Reject a text that is not a URL, which would otherwise be reported as a server that does not answer."""
    if not url.startswith(SCHEMES):
        raise typer.BadParameter(f"{url!r} begins with neither http:// nor https:// (example: {DEFAULT_URL})")
    return url


Url = Annotated[str, env("URL", "URL of the server", callback=_check_url)]
Key = Annotated[str | None, env("API_KEY", "API key, if the server requires one")]
