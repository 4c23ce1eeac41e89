"""Checks before anything starts: the port and the model folders."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from denoised.app.launch.addresses import check_bindable
from denoised.app.launch.errors import LaunchError


def check_port(host: str, port: int) -> None:
    """Check that a server can listen on a host's port.

    Raises:
        LaunchError: if it cannot.
    """
    try:
        check_bindable(host, port)
    except (socket.gaierror, UnicodeError) as error:
        raise LaunchError(f"--host {host} is no address or known name: choose another") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise LaunchError(f"--host {host} is no address of this machine: choose another") from error
        raise LaunchError(
            f"port {port} on {host} cannot be used ({error.strerror}): choose another with --port"
        ) from error


def check_models(folders: Sequence[Path]) -> None:
    """Check that folders contain the files of a model, in a child process without torch: the front end imports nothing
    that reads checkpoints, and the worker would report the problem only after the store and the API have started.

    Raises:
        LaunchError: if a folder cannot be served.
    """
    if not folders:
        return
    command = [sys.executable, "-P", "-m", "denoised.model.checkpoints", *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise LaunchError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
