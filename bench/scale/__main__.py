"""`make scale`: measure what many workers, jobs and listeners cost, and generate docs/scale.md from docs/scale.csv.

make scale                            everything that is not in docs/scale.csv yet
make scale ARGS=--again               everything
make scale ARGS="--only acceptance"   some sections; their rows replace the old ones
make scale ARGS=--quick               a check of the code of about a minute; writes nothing
make scale ARGS=--render              measures nothing, only rewrites the page
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError
from bench.load.processes import ROOT
from bench.machine import this_machine
from bench.results.samples import SampleRecorder, SampleTable, read_samples, replace_section, section_of, write_samples
from bench.scale.measurements import SECTIONS
from bench.scale.page import DOCUMENT, TABLE, render_scale_page
from bench.scale.scale_names import COUNTS
from bench.scale.scale_run import FULL, QUICK, ScaleRun
from denoised.model.checkpoints.atomic import write_text_atomically

BUSY = 0.7  # load average above which times are not worth measuring
DOCS = ROOT / "docs"

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def scale(
    only: Annotated[str, typer.Option(help=f"sections, comma-separated, of {', '.join(SECTIONS)}")] = "",
    again: Annotated[bool, typer.Option("--again", help="also measure what is in docs/scale.csv already")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="a check of about a minute; writes nothing")] = False,
    render: Annotated[bool, typer.Option("--render", help="measure nothing, only rewrite the page")] = False,
) -> None:
    """Measure many workers, waiting jobs and listening sockets on one Valkey."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    table: SampleTable = {} if quick else read_samples(DOCS / TABLE)
    try:
        if not render:
            table = measure(_choose(only, table, again or quick), table, quick=quick)
    except BenchError as error:
        typer.echo(f"bench.scale: {error}", err=True)
        raise typer.Exit(1) from error
    if quick:
        typer.echo("\n" + render_scale_page(table))
    else:
        _write(table)


def _choose(only: str, table: SampleTable, again: bool) -> list[str]:
    """The sections to measure: those named, else those without rows."""
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := set(chosen) - set(SECTIONS):
        raise BenchError(f"--only {', '.join(sorted(unknown))}: no such section (known: {', '.join(SECTIONS)})")
    return chosen or [name for name in SECTIONS if again or not section_of(table, name)]


def measure(sections: list[str], table: SampleTable, *, quick: bool) -> SampleTable:
    """Measure sections one after another; the rows of each are written before the next begins."""
    machine = this_machine()
    typer.echo(str(machine))
    if (load := os.getloadavg()[0]) > BUSY and set(sections) - set(COUNTS):
        typer.echo(f"other programs are running here (load average {load:.1f}): times will be unreliable")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="denoised-scale-")))
        run = ScaleRun(folder, QUICK if quick else FULL, typer.echo, stack)
        for section in sections:
            typer.echo(f"== {section}")
            began, recorder = time.monotonic(), SampleRecorder()
            SECTIONS[section](run, recorder)
            today = datetime.now(UTC).date().isoformat()
            table = replace_section(table, section, recorder.table(section, today, machine))
            typer.echo(f"   took {time.monotonic() - began:.0f} s")
            if not quick:
                _write(table)
    return table


def _write(table: SampleTable) -> None:
    write_samples(DOCS / TABLE, table)
    write_text_atomically(DOCS / DOCUMENT, render_scale_page(table))
    typer.echo(f"   wrote {(DOCS / DOCUMENT).relative_to(ROOT)}")


if __name__ == "__main__":
    cli(prog_name="bench.scale")
