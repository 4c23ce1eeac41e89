"""What the server's commands make of their options and of the environment."""

from __future__ import annotations

import os
from pathlib import Path

from denoised.command_line.console import exit_with_error


def requires_key() -> bool:
    """Whether the environment holds keys for the API."""
    return any(os.environ.get(name) for name in ("DENOISED_API_KEYS", "DENOISED_API_KEYS_FILE"))


def worker_arguments(
    model: list[str] | None, loras: Path | None, controlnets: Path | None, device: str | None, precision: str | None
) -> list[str]:
    """Options passed to the worker."""
    arguments = [] if device is None else ["--device", device]
    arguments += [] if loras is None else ["--loras", str(loras)]
    arguments += [] if controlnets is None else ["--controlnets", str(controlnets)]
    arguments += [] if precision is None else ["--precision", precision]
    return arguments + [text for name in model or [] for text in ("--model", name)]


def data_folder(command: str, given: Path | None) -> Path:
    """The folder given, or `denoised` in the user's data folder."""
    if given is not None:
        return given.absolute()
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    if base.is_absolute():  # the XDG base directory specification ignores other values
        return base / "denoised"
    try:
        return Path.home() / ".local" / "share" / "denoised"
    except RuntimeError:  # no HOME, and the user id has no entry in the password database
        exit_with_error(command, "this user has no home folder: choose a folder with --data-dir")
