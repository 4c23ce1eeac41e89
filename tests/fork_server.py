"""`Popen` and `run` as in `subprocess`, for the programs of this package, without the time that their imports take.

A start of a worker imports torch, which takes more than a second of CPU time. Here a server process imports once what
the programs import (`tests/forked_program.py`), and forks for each start. The forked process becomes a child of the
caller (`_adopting`): its pid, signals, exit code, streams and resource usage are those of any other child. A forked
program forks the programs that it starts itself, such as the children of `denoised serve`.

What is not a program of this package, and what changes a variable that matters to imports, starts as with
`subprocess`. So does everything without OMP_NUM_THREADS=1, which `make test` sets: numpy and torch then start threads
when they are imported, and a process with threads must not fork. Tests of the start itself use `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Beginnings of the variables that the interpreter, or a module while it is imported, reads.
IMPORT_TIME = ("ATEN_", "FORCE_COLOR", "GOMP_", "LANG", "LC_", "LD_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_")
IMPORT_TIME += ("PYTHON", "PY_COLORS", "TERMINAL_WIDTH", "TORCH_", "TYPER_")
DEFAULTS = {"GOMP_SPINCOUNT": "10000"}  # as denoised.command_line.service_options.TORCH_ENVIRONMENT
PACKAGES = ("denoised", "tests")
PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>
TITLE_BYTES = 4096  # room for the command line that a forked process shows in ps


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` that forks for `[sys.executable, "-m", "denoised…", …]`, also with -P before -m."""

    def _execute_child(self, args: Any, *options: Any) -> None:
        if not is_forkable(args, *options):
            super()._execute_child(args, *options)  # type: ignore[misc]
            return
        request, stdio, pipes = requested(args, *options)
        self.pid = _server().fork(request, stdio)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def run(
    command: Sequence[Any],
    *,
    check: bool = False,
    timeout: float | None = None,
    capture_output: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Like `subprocess.run`, without `input`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def can_fork() -> bool:
    """Whether a process that has imported everything has a single thread."""
    return sys.platform == "linux" and os.environ.get("OMP_NUM_THREADS") == "1"


def is_forkable(
    args: Any,
    executable: Any,
    preexec_fn: Any,
    close_fds: bool,
    pass_fds: Sequence[int],
    cwd: Any,
    env: Mapping[str, str] | None,
    *options: Any,
) -> bool:
    """Whether `Popen._execute_child` is called for a program that a fork can run."""
    known = preexec_fn is None or preexec_fn.__module__ == "tests.pseudo_terminal"
    if not can_fork() or executable or not known or pass_fds or not isinstance(args, list):
        return False
    _, _, shell, *rest = options
    identity = rest[7:11]  # gid, gids, uid, umask
    if shell or any(value not in (None, -1) for value in (*identity, *rest[12:])):
        return False
    return module_of(args) is not None and _import_time(os.environ if env is None else env) == _import_time(os.environ)


def module_of(args: Sequence[Any]) -> str | None:
    """The module that a command runs with -m, if it is ours."""
    command = [str(arg) for arg in args if arg != "-P"] if args[1:2] == ["-P"] else [*map(str, args)]
    ours = command[:2] == [sys.executable, "-m"] and command[2].split(".")[0] in PACKAGES
    return command[2] if ours else None


def requested(
    args: Sequence[Any],
    executable: Any,
    preexec_fn: Any,
    close_fds: bool,
    pass_fds: Sequence[int],
    cwd: Any,
    env: Mapping[str, str] | None,
    *options: Any,
) -> tuple[dict[str, Any], list[int], list[int]]:
    """Of the arguments of `Popen._execute_child`: the request to the server, the child's streams, all ends of pipes."""
    pipes = list(options[3:9])
    request = {
        "args": [*map(os.fspath, args)],
        "cwd": os.fspath(cwd or Path.cwd()),
        "env": dict(os.environ if env is None else env),
        "new_session": bool(options[14]),
        "prepare": getattr(preexec_fn, "__name__", None),
    }
    ends = (pipes[0], pipes[3], pipes[5])
    return request, [number if end == -1 else end for number, end in enumerate(ends)], pipes


def _import_time(env: Mapping[str, str]) -> dict[str, str]:
    given = {name: value for name, value in {**DEFAULTS, **env}.items() if name.startswith(IMPORT_TIME)}
    return {name: value for name, value in given.items() if value and value != "C.UTF-8"}


class ForkServer:
    """The process that has imported everything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "tests.forked_program", str(theirs.fileno()), "-" * TITLE_BYTES]
        with theirs:
            self._process = subprocess.Popen(command, env=DEFAULTS | os.environ, pass_fds=[theirs.fileno()])

    def fork(self, request: Mapping[str, Any], stdio: Sequence[int]) -> int:
        """The pid of a new child of this process, which runs the command of the request."""
        message = json.dumps(request).encode()
        with self._lock, _adopting():
            socket.send_fds(self._socket, [len(message).to_bytes(4)], stdio)
            self._socket.sendall(message)
            answer = self._socket.recv(64)
        assert answer, "the fork server has exited"
        return int(answer)

    def close(self) -> None:
        """Let the server exit; what it has forked goes on."""
        self._socket.close()
        self._process.wait()


_running: list[ForkServer] = []


def _server() -> ForkServer:
    """This process's server, started when it is first needed."""
    if not _running:
        _running.append(ForkServer())
        atexit.register(_running[0].close)
    return _running[0]


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Make this process the parent of every descendant whose own parent exits."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
