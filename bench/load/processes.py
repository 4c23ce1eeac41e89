"""The programs that are measured: starting them, stopping them, and suspending them while others are measured."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.errors import BenchError
from denoised.command_line.service_options import TORCH_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180.0
STOP_SECONDS = 15.0
PROC = Path("/proc")
START_TIME = 17  # index of the start time in /proc/PID/stat, counted after the parent's number
# Without the settings that `make bench` makes for its own torch: denoised sets them itself, and the peers run with
# their defaults.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in TORCH_ENVIRONMENT}


@dataclass(frozen=True)
class ProcessId:
    """A process. The start time tells it from a later process with the same number."""

    pid: int
    started: str


@dataclass
class MeasuredProgram:
    """A program in a session of its own, so that a Ctrl-C in the terminal reaches only this process, which stops it."""

    name: str
    process: subprocess.Popen[str]
    log: Path

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        piped: bool = False,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> MeasuredProgram:
        """Start a program whose output goes to `log`. piped: its stdin and stdout are for `write_line`, `read_line`.

        Raises:
            BenchError: if there is no such program.
        """
        with log.open("a", encoding="utf-8") as file:
            try:
                process = subprocess.Popen(
                    [str(part) for part in command],
                    cwd=cwd,
                    env={**ENVIRONMENT, **(environment or {})},
                    stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if piped else file,
                    stderr=file,
                    text=True,
                    start_new_session=True,
                )
            except OSError as error:
                raise BenchError(f"{name} does not start: {error}") from error
        return cls(name, process, log)

    def read_line(self, seconds: float = START_SECONDS) -> str:
        """The next line of output. The program prints one line per line of input, so none is left unread.

        Raises:
            BenchError: if it exits instead, or prints nothing for so long.
        """
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise BenchError(f"{self.name} printed nothing for {seconds:g} s: {self.log_tail()}")
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"{self.name} exited: {self.log_tail()}")
        return line

    def write_line(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait_until(self, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Raise a BenchError if it exits, or is not ready in time."""
        end = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise BenchError(f"{self.name} exited with code {self.process.returncode}: {self.log_tail()}")
            if time.monotonic() > end:
                raise BenchError(f"{self.name} is not ready after {seconds:g} s: {self.log_tail()}")
            time.sleep(0.05)

    def log_tail(self) -> str:
        """The last lines of its log, joined into one."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-8:] if line.strip()) or "it logged nothing"

    def suspend(self) -> None:
        """Suspend it and its descendants; parents first, since a running parent might replace a suspended child."""
        for member in process_tree(self.process.pid):
            _send(member, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume it and its descendants, children first."""
        for member in reversed(process_tree(self.process.pid)):
            _send(member, signal.SIGCONT)

    def stop(self) -> None:
        """Terminate it, and kill those of its descendants that are still alive then."""
        members = process_tree(self.process.pid)
        self.resume()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        living = set(_parents())
        for member in members:
            if member in living:
                _send(member, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def process_tree(pid: int) -> list[ProcessId]:
    """A process and its living descendants, every parent before its children."""
    parents = _parents()
    found = [member for member in parents if member.pid == pid]
    for member in found:  # the list grows while it is read
        found += [child for child, parent in parents.items() if parent == member.pid]
    return found


def command_line(pid: int) -> str:
    """The command line of a process; "" if it is gone."""
    if PROC.exists():
        with suppress(OSError):
            return (PROC / str(pid) / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
        return ""
    return _ps("-o", "args=", "-p", str(pid)).strip()


def resident_bytes(pid: int) -> int:
    """The resident memory of a process.

    Raises:
        BenchError: if there is no such process.
    """
    kilobytes = _ps("-o", "rss=", "-p", str(pid)).strip()
    if not kilobytes:
        raise BenchError(f"process {pid} is gone")
    return int(kilobytes) * 1024


def _parents() -> dict[ProcessId, int]:
    """Every living process with the number of its parent, from /proc where it exists: not every system has `ps`."""
    if not PROC.exists():
        return _parents_by_ps()
    found = {}
    for path in PROC.glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended meanwhile
            pid, _, rest = path.read_text().partition(" (")
            state, parent, *fields = rest.rpartition(") ")[2].split()
            if state not in "ZX":
                found[ProcessId(int(pid), fields[START_TIME])] = int(parent)
    return found


def _parents_by_ps() -> dict[ProcessId, int]:
    found = {}
    for line in _ps("-eo", "pid=,ppid=,stat=,lstart=").splitlines():
        pid, parent, state, started = line.split(None, 3)
        if not state.startswith("Z"):
            found[ProcessId(int(pid), started.strip())] = int(parent)
    return found


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout


def _send(member: ProcessId, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(member.pid, signum)
