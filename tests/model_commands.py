"""The commands of `python -m denoised.model`, run in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from denoised.model.__main__ import app


def run_command(*arguments: object) -> Result:
    """Run a command with these arguments."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
