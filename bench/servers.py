"""The servers that are held against each other: denoised as a user starts it, and its peers.

All of them live through a whole run, but only one is not held still at a time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.errors import BenchError
from bench.names import BARE, BATCHING, LOCKED, OURS, in_precision
from bench.programs import ROOT, Program, answers, command_line, family, free_port
from denoised.model.backends.numerics import Precision

PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
FOLDER = ROOT / "model" / "zoo" / "fashion-mnist"  # what all of them serve

RESUME_SECONDS = 30.0


@dataclass(frozen=True)
class Manner:
    """How a network is evaluated. compiled: a peer's, by torch.compile."""

    device: str = "cpu"
    precision: Precision = "float32"
    compiled: bool = False

    def of(self, name: str) -> str:
        """What a subject is called that evaluates so: "(b) LitServe, compiled, bfloat16"."""
        return in_precision(f"{name}, compiled" if self.compiled else name, self.precision)

    @property
    def options(self) -> list[str]:
        """Of a peer's command line."""
        compiled = ["--compile"] if self.compiled else []
        return ["--device", self.device, "--precision", self.precision, *compiled]


@dataclass
class Server:
    """A server on this machine. ready: the path that answers 200 when it serves."""

    program: Program
    url: str
    ready: str

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def is_ready(self) -> bool:
        return answers(self.url + self.ready)

    @contextmanager
    def awake(self) -> Iterator[Server]:
        """Let it go on, and hold it still again."""
        self.program.resume()
        try:
            self.program.wait_until(lambda: self.is_ready, RESUME_SECONDS)
            yield self
        finally:
            self.program.pause()


@contextmanager
def server(program: Program, url: str, ready: str) -> Iterator[Server]:
    """Wait until it serves; stop it in the end.

    Raises:
        BenchError: when it does not come to serve.
    """
    try:
        made = Server(program, url, ready)
        program.wait_until(lambda: made.is_ready)
        yield made
    finally:
        program.stop()


@contextmanager
def denoised(place: Path, name: str = "data") -> Iterator[Server]:
    """Ours: `denoised serve`, with a data directory under `place`, and nothing else said than where."""
    port = free_port()
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "denoised",
        "serve",
        "--port",
        str(port),
        "--data-dir",
        place / name,
    ]
    program = Program.start(OURS, command, place / f"{name}.log")
    with server(program, f"http://127.0.0.1:{port}", "/readyz") as made:
        yield made


@contextmanager
def denoised_on(manner: Manner, place: Path) -> Iterator[Server]:
    """Ours on that device and in that precision."""
    name, port = manner.of(OURS), free_port()
    where: list[str | Path] = ["--port", str(port), "--data-dir", place / f"data-{manner.precision}"]
    command = [sys.executable, "-m", "denoised", "serve", *where, "--device", manner.device]
    environment = {"DENOISED_PRECISION": manner.precision}
    program = Program.start(name, command, place / f"{name}.log", environment=environment)
    with server(program, f"http://127.0.0.1:{port}", "/readyz") as made:
        yield made


@contextmanager
def peer(name: str, module: str, place: Path, manner: Manner | None = None) -> Iterator[Server]:
    """One of `bench.peers`, in their own environment; by default as it comes, on the CPU."""
    port = free_port()
    options = manner.options if manner is not None else []
    program = Program.start(name, [*_in_peers(module), FOLDER, str(port), *options], place / f"{name}.log")
    with server(program, f"http://127.0.0.1:{port}", "/health") as made:
        yield made


@dataclass
class Bare:
    """Peer (c). images, layout: the batch size and memory format that it found fastest."""

    program: Program
    images: int
    layout: str

    def evaluations_per_second(self, seconds: float) -> float:
        """Of a loop of so many seconds; it waits for its next order before and after."""
        self.program.tell(str(seconds))
        told = json.loads(self.program.hear())
        return float(told["evaluations"]) / float(told["seconds"])


@contextmanager
def bare(place: Path, name: str = BARE, manner: Manner | None = None) -> Iterator[Bare]:
    """Peer (c), which has chosen how it loops."""
    options = manner.options if manner is not None else []
    program = Program.start(name, [*_in_peers("bare"), FOLDER, *options], place / f"{name}.log", talks=True)
    try:
        chosen = json.loads(program.hear())
        yield Bare(program, int(chosen["images"]), str(chosen["format"]))
    finally:
        program.stop()


def _in_peers(module: str) -> list[str | Path]:
    return [_peers_python(), "-m", f"bench.peers.{module}"]


def _peers_python() -> Path:
    """The interpreter of the peers' environment; this one, where there is none and it has what they import."""
    if PEERS_PYTHON.exists():
        return PEERS_PYTHON
    if all(find_spec(name) is not None for name in ("diffusers", "litserve")):
        return Path(sys.executable)
    raise BenchError(f"{PEERS_PYTHON.relative_to(ROOT)} is not there: run `make bench`, which installs it")


@dataclass
class Servers:
    """All of them; each is held still until it is woken."""

    ours: Server
    locked: Server
    batching: Server
    bare: Bare


@contextmanager
def all_servers(place: Path) -> Iterator[Servers]:
    """Start them one after another, each held still as soon as it is ready."""
    with ExitStack() as stack:

        def paused(starting: AbstractContextManager[Server]) -> Server:
            started = stack.enter_context(starting)
            started.program.pause()
            return started

        yield Servers(
            ours=paused(denoised(place)),
            locked=paused(peer(LOCKED, "locked", place)),
            batching=paused(peer(BATCHING, "batching", place)),
            bare=stack.enter_context(bare(place)),
        )


def worker_of(server: Server) -> int:
    """The number of the worker's process of ours.

    Raises:
        BenchError: when there is not exactly one.
    """
    workers = [m.pid for m in family(server.program.process.pid) if "-m denoised.worker" in command_line(m.pid)]
    if len(workers) != 1:
        raise BenchError(f"{server.name} has {len(workers)} worker processes, not one")
    return workers[0]
