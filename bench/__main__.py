"""`make bench`: measure, store the samples in docs/performance.csv, and generate docs/performance.md from them.

make bench                                 everything, about 35 minutes
make bench ARGS="--only kernels,loads"     some sections; their samples replace the old ones
make bench ARGS=--quick                    a quick check of about eight minutes; writes nothing
make bench ARGS=--render                   measures nothing, only rewrites the page
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bench.benchmark_run import BenchmarkRun
from bench.errors import BenchError
from bench.load.processes import ROOT
from bench.machine import this_machine
from bench.results import sample_names as names
from bench.results.plots import write_plots
from bench.results.report import DOCUMENT, TABLE, render_page
from bench.results.samples import SampleRecorder, SampleTable, read_samples, replace_section, write_samples
from bench.run_length import FULL, QUICK
from bench.sections import kernels, load_sections, memory_growth, startup_time, text_sections, turn_cost
from denoised.model.checkpoints.atomic import write_text_atomically

BUSY = 0.7  # load average above which other programs disturb the measurement
DOCS = ROOT / "docs"
SECTIONS: dict[str, Callable[[BenchmarkRun, SampleRecorder], None]] = {
    names.KERNELS: kernels.measure_kernels,
    names.SHAPES: kernels.measure_shapes,
    names.LOADS: load_sections.measure_loads,
    names.CLIENTS: load_sections.measure_clients,
    names.LISTENERS: load_sections.measure_listeners,
    names.MEMORY: memory_growth.measure_memory,
    names.READINESS: startup_time.measure_startup,
    names.TURNS: turn_cost.measure_turns,
    names.TEXT_KERNELS: text_sections.measure_text_kernels,
    names.TEXT_LOADS: text_sections.measure_text_loads,
}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def bench(
    only: Annotated[str, typer.Option(help=f"sections, comma-separated, of {', '.join(SECTIONS)}")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="a quick check of about eight minutes; writes nothing")
    ] = False,
    render: Annotated[bool, typer.Option("--render", help="measure nothing, only rewrite the page")] = False,
) -> None:
    """Measure denoised and its peers."""
    signal.signal(signal.SIGTERM, _exit)
    try:
        if not render:
            _measure(_choose_sections(only), quick)
        elif only or quick:
            raise BenchError("--render measures nothing and cannot be combined with other options")
        else:
            _write(read_samples(DOCS / TABLE))
    except BenchError as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(1) from error


def _choose_sections(only: str) -> list[str]:
    """The sections to run, in their order."""
    chosen = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := chosen - set(SECTIONS):
        raise BenchError(f"--only {', '.join(sorted(unknown))}: no such section (known: {', '.join(SECTIONS)})")
    return [name for name in SECTIONS if not chosen or name in chosen]


def _measure(sections: list[str], quick: bool) -> None:
    """Run sections one after another; the samples of each are written before the next begins."""
    table: SampleTable = {} if quick else read_samples(DOCS / TABLE)
    machine = this_machine()
    typer.echo(str(machine))
    if (load := os.getloadavg()[0]) > BUSY:
        typer.echo(f"other programs are running here (load average {load:.1f}): the results will be unreliable")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="denoised-bench-")))
        run = BenchmarkRun(folder, QUICK if quick else FULL, typer.echo, stack)
        for section in sections:
            typer.echo(f"== {section}")
            began, recorder = time.monotonic(), SampleRecorder()
            SECTIONS[section](run, recorder)
            today = datetime.now(UTC).date().isoformat()
            table = replace_section(table, section, recorder.table(section, today, machine))
            typer.echo(f"   took {time.monotonic() - began:.0f} s")
            if not quick:
                _write(table)
    if quick:
        typer.echo("\n" + render_page(table))


def _write(table: SampleTable) -> None:
    write_samples(DOCS / TABLE, table)
    write_plots(DOCS, table)
    write_text_atomically(DOCS / DOCUMENT, render_page(table))
    typer.echo(f"   wrote {(DOCS / DOCUMENT).relative_to(ROOT)}")


def _exit(*_: object) -> None:
    """Exit on SIGTERM in the regular way, which stops the servers."""
    raise SystemExit(143)


if __name__ == "__main__":
    cli(prog_name="bench")
