"""Programs that are measured: started, stopped, and held still while another is measured."""

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
from denoised.app.settings import TORCH_ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 180.0
STOP_SECONDS = 15.0
PROC = Path("/proc")
BEGAN = 17  # of the fields of /proc/PID/stat after the parent's number: when the process began
# Without what `make bench` sets for its own torch: denoised sets that itself, its peers run as they come.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in TORCH_ENVIRONMENT}


@dataclass(frozen=True)
class Member:
    """A process; a number is given to another process one day, with another beginning."""

    pid: int
    began: str


@dataclass
class Program:
    """A program in a session of its own: a Ctrl-C in the terminal reaches this process alone, which stops it."""

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
        talks: bool = False,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> Program:
        """What it prints goes to `log`; its standard output does not where it `talks` with us.

        Raises:
            BenchError: when there is no such program.
        """
        with log.open("a", encoding="utf-8") as file:
            try:
                process = subprocess.Popen(
                    [str(part) for part in command],
                    cwd=cwd,
                    env={**ENVIRONMENT, **(environment or {})},
                    stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if talks else file,
                    stderr=file,
                    text=True,
                    start_new_session=True,
                )
            except OSError as error:
                raise BenchError(f"{name} does not start: {error}") from error
        return cls(name, process, log)

    def hear(self, seconds: float = START_SECONDS) -> str:
        """The next line that it prints: one for each that it is told, so that none waits to be read.

        Raises:
            BenchError: when it ends instead, or says nothing for so long.
        """
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise BenchError(f"{self.name} said nothing for {seconds:g} s: {self.last_words()}")
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"{self.name} ended: {self.last_words()}")
        return line

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait_until(self, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Raise a BenchError when it ends, or is not ready in time."""
        end = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise BenchError(f"{self.name} ended with exit code {self.process.returncode}: {self.last_words()}")
            if time.monotonic() > end:
                raise BenchError(f"{self.name} is not ready after {seconds:g} s: {self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        """The end of its log, in one line."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-8:] if line.strip()) or "it said nothing"

    def pause(self) -> None:
        """Hold it and all its descendants still, parents first, who might miss a child."""
        for member in family(self.process.pid):
            _send(member, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on, children first."""
        for member in reversed(family(self.process.pid)):
            _send(member, signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM to it, and SIGKILL to whoever of its family is left then."""
        members = family(self.process.pid)
        self.resume()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        living = set(_processes())
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


def family(pid: int) -> list[Member]:
    """A process and its living descendants, every parent before its children."""
    parents = _processes()
    found = [member for member in parents if member.pid == pid]
    for member in found:  # grows meanwhile
        found += [child for child, parent in parents.items() if parent == member.pid]
    return found


def command_line(pid: int) -> str:
    """What a process was started as; "" when it is gone."""
    if PROC.exists():
        with suppress(OSError):
            return (PROC / str(pid) / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
        return ""
    return _ps("-o", "args=", "-p", str(pid)).strip()


def resident_bytes(pid: int) -> int:
    """The memory of a process that lies in RAM.

    Raises:
        BenchError: when there is no such process.
    """
    told = _ps("-o", "rss=", "-p", str(pid)).strip()
    if not told:
        raise BenchError(f"process {pid} is gone")
    return int(told) * 1024


def _processes() -> dict[Member, int]:
    """All that live, with the number of each one's parent; from /proc, where there is one: not everywhere is a `ps`."""
    if not PROC.exists():
        return _told_by_ps()
    found = {}
    for path in PROC.glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            pid, _, rest = path.read_text().partition(" (")
            state, parent, *fields = rest.rpartition(") ")[2].split()
            if state not in "ZX":
                found[Member(int(pid), fields[BEGAN])] = int(parent)
    return found


def _told_by_ps() -> dict[Member, int]:
    found = {}
    for line in _ps("-eo", "pid=,ppid=,stat=,lstart=").splitlines():
        pid, parent, state, began = line.split(None, 3)
        if not state.startswith("Z"):
            found[Member(int(pid), began.strip())] = int(parent)
    return found


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout


def _send(member: Member, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(member.pid, signum)
