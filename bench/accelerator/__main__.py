"""Measure denoised and its peers on a CUDA device; writes docs/performance-cuda.csv and docs/performance-cuda.md.

python -m bench.accelerator                                      everything, about ten minutes
python -m bench.accelerator --only loads --budget 300            one section; nothing starts after 300 s
python -m bench.accelerator --device cpu --out /tmp/rehearsal    a rehearsal on a machine without such a device
python -m bench.accelerator --render                             measures nothing, only rewrites the page

New samples replace old ones, and what is not measured again is kept. Samples are written after each subject. Failures
are logged, and the other subjects continue.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.accelerator.accelerator_run import AcceleratorRun
from bench.accelerator.evaluations import measure_evaluations
from bench.accelerator.loads import measure_accelerator_loads
from bench.accelerator.page import DOCUMENT, TABLE, render_accelerator_page
from bench.benchmark_run import BenchmarkRun
from bench.errors import BenchError
from bench.load.processes import ROOT
from bench.machine import Machine, this_machine
from bench.results import sample_names as names
from bench.results.samples import SampleRecorder, read_samples, write_samples
from bench.run_length import RunLength
from denoised.model.backends.numerics import PRECISIONS, Precision
from denoised.model.checkpoints.atomic import write_text_atomically

DOCS = ROOT / "docs"
SECTIONS: dict[str, Callable[[AcceleratorRun], None]] = {
    names.ONE_EVALUATION: measure_evaluations,
    names.LOADS: measure_accelerator_loads,
}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Options:
    """What to measure, as chosen on the command line.

    budget: seconds after which no measurement starts.
    compiled: also measure the peers with compiled networks.
    out: the folder of the page and its CSV.
    """

    sections: list[str]
    precisions: tuple[Precision, ...]
    length: RunLength
    budget: float
    device: str
    compiled: bool
    out: Path


@cli.command()
def accelerator(
    only: Annotated[str, typer.Option(help=f"sections, comma-separated, of {', '.join(SECTIONS)}")] = "",
    precisions: Annotated[
        str, typer.Option(help=f"precisions of the loads, of {', '.join(PRECISIONS)}")
    ] = "float32,bfloat16",
    seconds: Annotated[
        float, typer.Option(min=0.1, help="duration of a load, after a warm-up of a quarter of it")
    ] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="samples of each quantity of the loads")] = 2,
    budget: Annotated[float, typer.Option(min=1, help="seconds after which no measurement starts")] = 600.0,
    device: Annotated[str, typer.Option(help="cuda or cuda:1; cpu for a rehearsal")] = "cuda",
    compiled: Annotated[bool, typer.Option(help="also measure the peers with torch.compile")] = True,
    out: Annotated[Path, typer.Option(help="the folder of the page and its CSV")] = DOCS,
    render: Annotated[bool, typer.Option("--render", help="measure nothing, only rewrite the page")] = False,
) -> None:
    """Measure denoised and its peers on an accelerator."""
    length = RunLength(rounds=rounds, seconds=seconds, warm_up=seconds / 4, sweep_seconds=seconds / 2, timeout=60.0)
    try:
        if render:
            _render(out)
        else:
            chosen = _choose_sections(only), _choose_precisions(precisions)
            _measure(Options(*chosen, length, budget, device, compiled, out))
    except BenchError as error:
        typer.echo(f"bench.accelerator: {error}", err=True)
        raise typer.Exit(1) from error


def _choose_sections(only: str) -> list[str]:
    """The sections to run, in their order."""
    chosen = _split(only) or list(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        raise BenchError(f"--only {', '.join(sorted(unknown))}: no such section (known: {', '.join(SECTIONS)})")
    return [name for name in SECTIONS if name in chosen]


def _choose_precisions(text: str) -> tuple[Precision, ...]:
    chosen = _split(text)
    if unknown := set(chosen) - set(PRECISIONS):
        raise BenchError(f"--precisions {', '.join(sorted(unknown))}: not known (known: {', '.join(PRECISIONS)})")
    return tuple(precision for precision in PRECISIONS if precision in chosen)


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _measure(options: Options) -> None:
    out, device = options.out, options.device
    if device == "cpu" and out.resolve() == DOCS:
        raise BenchError("--device cpu is a rehearsal: choose a folder other than docs with --out")
    machine = _machine(device)
    before, began = read_samples(out / TABLE), time.monotonic()
    recorders = {name: SampleRecorder() for name in options.sections}

    def log(line: str) -> None:
        typer.echo(f"[{time.monotonic() - began:6.1f} s] {line}")

    def save() -> None:
        """Replace the old samples with the new ones; keep what is not measured again."""
        table, today = before, datetime.now(UTC).date().isoformat()
        for name, recorder in recorders.items():
            table = table | recorder.table(name, today, machine)
        write_samples(out / TABLE, table)
        _render(out)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    log(str(machine))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="denoised-bench-")))
        run = BenchmarkRun(folder, options.length, log, stack)
        deadline = began + options.budget
        for name, recorder in recorders.items():
            log(f"== {name}")
            precisions = options.precisions if name == names.LOADS else PRECISIONS
            SECTIONS[name](AcceleratorRun(run, recorder, device, precisions, options.compiled, save, deadline))
            save()
    log(f"wrote {out / DOCUMENT}")
    typer.echo("\n" + (out / DOCUMENT).read_text(encoding="utf-8"))


def _render(out: Path) -> None:
    write_text_atomically(out / DOCUMENT, render_accelerator_page(read_samples(out / TABLE)))


def _machine(device: str) -> Machine:
    """This machine, named after its accelerator.

    Raises:
        BenchError: if it has none.
    """
    machine = this_machine()
    if device == "cpu":
        return machine
    if not torch.cuda.is_available():
        raise BenchError("this machine has no CUDA device")
    return replace(machine, cpu=f"{torch.cuda.get_device_name(device)} with {machine.cpu}", torch=torch.__version__)


if __name__ == "__main__":
    cli(prog_name="bench.accelerator")
