"""The servers that are compared: denoised as a user starts it, and its peers.

All of them stay alive for a whole run, but only one at a time is not suspended.
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
from bench.load.processes import ROOT, MeasuredProgram, answers, command_line, free_port, process_tree
from bench.results.sample_names import BARE, BATCHING, DENOISED, LOCKED, in_precision
from denoised.model.backends.numerics import Precision

PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
FOLDER = ROOT / "model" / "zoo" / "fashion-mnist"  # the model that all of them serve
RESUME_SECONDS = 30.0


@dataclass(frozen=True)
class EvaluationOptions:
    """How a network is evaluated. compiled: by torch.compile; peers only."""

    device: str = "cpu"
    precision: Precision = "float32"
    compiled: bool = False

    def name(self, subject: str) -> str:
        """The name of a subject with these options: "(b) LitServe, compiled, bfloat16"."""
        return in_precision(f"{subject}, compiled" if self.compiled else subject, self.precision)

    @property
    def arguments(self) -> list[str]:
        """The command line arguments of a peer."""
        compiled = ["--compile"] if self.compiled else []
        return ["--device", self.device, "--precision", self.precision, *compiled]


@dataclass
class Server:
    """A server on this machine. ready_path: answers 200 once it serves."""

    program: MeasuredProgram
    url: str
    ready_path: str

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def is_ready(self) -> bool:
        return answers(self.url + self.ready_path)

    @contextmanager
    def resumed(self) -> Iterator[Server]:
        """Resume it for the duration of the block, and suspend it again."""
        self.program.resume()
        try:
            self.program.wait_until(lambda: self.is_ready, RESUME_SECONDS)
            yield self
        finally:
            self.program.suspend()


@contextmanager
def run_server(program: MeasuredProgram, url: str, ready_path: str) -> Iterator[Server]:
    """Wait until a started program serves, and stop it at the end.

    Raises:
        BenchError: if it does not become ready.
    """
    try:
        server = Server(program, url, ready_path)
        program.wait_until(lambda: server.is_ready)
        yield server
    finally:
        program.stop()


@contextmanager
def start_denoised(folder: Path, name: str = "data", model: Path | None = None) -> Iterator[Server]:
    """`denoised serve` with its defaults, a data directory `name` under `folder`, and one more model."""
    port = free_port()
    command = _serve_command(port, folder / name) + (["--model", model] if model is not None else [])
    program = MeasuredProgram.start(DENOISED, command, folder / f"{name}.log")
    with run_server(program, f"http://127.0.0.1:{port}", "/readyz") as server:
        yield server


@contextmanager
def start_denoised_on(options: EvaluationOptions, folder: Path) -> Iterator[Server]:
    """`denoised serve` on a device and in a precision."""
    name, port = options.name(DENOISED), free_port()
    command = [*_serve_command(port, folder / f"data-{options.precision}"), "--device", options.device]
    environment = {"DENOISED_PRECISION": options.precision}
    program = MeasuredProgram.start(name, command, folder / f"{name}.log", environment=environment)
    with run_server(program, f"http://127.0.0.1:{port}", "/readyz") as server:
        yield server


def _serve_command(port: int, data: Path) -> list[str | Path]:
    return [sys.executable, "-m", "denoised", "serve", "--port", str(port), "--data-dir", data]


@contextmanager
def start_peer(
    name: str, module: str, folder: Path, options: EvaluationOptions | None = None, model: Path = FOLDER
) -> Iterator[Server]:
    """One of `bench.peers`, in their own environment; by default with its defaults, on the CPU."""
    port = free_port()
    arguments = options.arguments if options is not None else []
    command = [*_peer_command(module), model, str(port), *arguments]
    program = MeasuredProgram.start(name, command, folder / f"{name}-{model.name}.log")
    with run_server(program, f"http://127.0.0.1:{port}", "/health") as server:
        yield server


@dataclass
class BareLoop:
    """Peer (c). images, layout: the batch size and memory format that it found to be fastest."""

    program: MeasuredProgram
    images: int
    layout: str

    def evaluations_per_second(self, seconds: float) -> float:
        """Run the loop for so many seconds; it is idle before and after."""
        self.program.write_line(str(seconds))
        report = json.loads(self.program.read_line())
        return float(report["evaluations"]) / float(report["seconds"])


@contextmanager
def start_bare_loop(folder: Path, name: str = BARE, options: EvaluationOptions | None = None) -> Iterator[BareLoop]:
    """Peer (c), which has chosen its batch size and memory format."""
    arguments = options.arguments if options is not None else []
    command = [*_peer_command("bare"), FOLDER, *arguments]
    program = MeasuredProgram.start(name, command, folder / f"{name}.log", piped=True)
    try:
        chosen = json.loads(program.read_line())
        yield BareLoop(program, int(chosen["images"]), str(chosen["format"]))
    finally:
        program.stop()


def _peer_command(module: str) -> list[str | Path]:
    return [_peers_python(), "-m", f"bench.peers.{module}"]


def _peers_python() -> Path:
    """The interpreter of the peers' environment; without one, this interpreter if it has what they import."""
    if PEERS_PYTHON.exists():
        return PEERS_PYTHON
    if all(find_spec(name) is not None for name in ("diffusers", "litserve")):
        return Path(sys.executable)
    raise BenchError(f"{PEERS_PYTHON.relative_to(ROOT)} does not exist: run `make bench`, which installs it")


@dataclass
class Servers:
    """All servers; each is suspended except while it is measured."""

    denoised: Server
    locked: Server
    batching: Server
    bare: BareLoop


@contextmanager
def all_servers(folder: Path) -> Iterator[Servers]:
    """Start all servers one after another; each is suspended as soon as it is ready."""
    with ExitStack() as stack:

        def suspended(starting: AbstractContextManager[Server]) -> Server:
            server = stack.enter_context(starting)
            server.program.suspend()
            return server

        yield Servers(
            denoised=suspended(start_denoised(folder)),
            locked=suspended(start_peer(LOCKED, "locked", folder)),
            batching=suspended(start_peer(BATCHING, "batching", folder)),
            bare=stack.enter_context(start_bare_loop(folder)),
        )


def worker_pid(server: Server) -> int:
    """The process number of denoised's worker.

    Raises:
        BenchError: if there is not exactly one worker.
    """
    processes = process_tree(server.program.process.pid)
    workers = [process.pid for process in processes if "-m denoised.worker" in command_line(process.pid)]
    if len(workers) != 1:
        raise BenchError(f"{server.name} has {len(workers)} worker processes, not one")
    return workers[0]
