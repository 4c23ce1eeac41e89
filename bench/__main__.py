"""`make bench`: measure, keep the figures in docs/performance.csv, and render docs/performance.md from them.

make bench                                 everything, some 25 minutes
make bench ARGS="--only kernels,loads"     some sections; their figures replace those that stand there
make bench ARGS=--quick                    a look of about five minutes; writes nothing
make bench ARGS=--render                   measures nothing, renders the page anew
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

from bench import kernels, lasting, names, serving
from bench.effort import FULL, QUICK
from bench.errors import BenchError
from bench.figures import Figures, Samples, read_figures, replace_section, write_figures
from bench.machine import this_machine
from bench.place import Place
from bench.plots import write_plots
from bench.programs import ROOT
from bench.report import DOCUMENT, TABLE, document
from denoised.model.checkpoints.atomic import write_text_atomically

BUSY = 0.7  # of one core, over the last minute
DOCS = ROOT / "docs"
SECTIONS: dict[str, Callable[[Place, Samples], None]] = {
    names.KERNELS: kernels.measure_kernels,
    names.SHAPES: kernels.measure_shapes,
    names.LOADS: serving.measure_loads,
    names.CLIENTS: serving.measure_clients,
    names.LISTENERS: serving.measure_listeners,
    names.MEMORY: lasting.measure_memory,
    names.READINESS: lasting.measure_ready,
}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def bench(
    only: Annotated[str, typer.Option(help=f"sections, comma-separated, of {', '.join(SECTIONS)}")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="a look of about five minutes; writes nothing")] = False,
    render: Annotated[bool, typer.Option("--render", help="measure nothing, write the page anew")] = False,
) -> None:
    """Measure denoised beside its peers."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        if not render:
            _measure(_chosen(only), quick)
        elif only or quick:
            raise BenchError("--render measures nothing: it goes with no other option")
        else:
            _write(read_figures(DOCS / TABLE))
    except BenchError as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(1) from error


def _chosen(only: str) -> list[str]:
    """The sections to run, in their order."""
    asked = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := asked - set(SECTIONS):
        raise BenchError(f"--only {', '.join(sorted(unknown))}: there is no such section (of {', '.join(SECTIONS)})")
    return [name for name in SECTIONS if not asked or name in asked]


def _measure(sections: list[str], quick: bool) -> None:
    """Run sections one after another; what one has found is written before the next begins."""
    figures: Figures = {} if quick else read_figures(DOCS / TABLE)
    machine = this_machine()
    typer.echo(str(machine))
    if (load := os.getloadavg()[0]) > BUSY:
        typer.echo(f"other programs are at work here (load average {load:.1f}): the figures will be of little worth")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="denoised-bench-")))
        place = Place(folder, QUICK if quick else FULL, typer.echo, stack)
        for section in sections:
            typer.echo(f"== {section}")
            began, found = time.monotonic(), Samples()
            SECTIONS[section](place, found)
            today = datetime.now(UTC).date().isoformat()
            figures = replace_section(figures, section, found.figures(section, today, machine))
            typer.echo(f"   took {time.monotonic() - began:.0f} s")
            if not quick:
                _write(figures)
    if quick:
        typer.echo("\n" + document(figures))


def _write(figures: Figures) -> None:
    write_figures(DOCS / TABLE, figures)
    write_plots(DOCS, figures)
    write_text_atomically(DOCS / DOCUMENT, document(figures))
    typer.echo(f"   wrote {(DOCS / DOCUMENT).relative_to(ROOT)}")


def _leave(*_: object) -> None:
    """SIGTERM: stop the servers on the way out."""
    raise SystemExit(143)


if __name__ == "__main__":
    cli(prog_name="bench")
