"""Measure denoised beside its peers on a CUDA device; docs/performance-cuda.csv and docs/performance-cuda.md.

python -m bench.accelerator                                    everything, some ten minutes
python -m bench.accelerator --only loads --budget 300          one section; nothing more is begun after 300 s
python -m bench.accelerator --device cpu --out /tmp/look       a rehearsal where there is no such device
python -m bench.accelerator --render                           measures nothing, renders the page anew

Figures replace those that stand there; what is not measured again stays. They are written after each subject.
What fails is said, and the rest goes on.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench import names
from bench.accelerated import measure_loads
from bench.accelerator_page import DOCUMENT, TABLE, document
from bench.effort import Effort
from bench.errors import BenchError
from bench.evaluations import measure_evaluations
from bench.figures import Samples, read_figures, write_figures
from bench.machine import Machine, this_machine
from bench.place import Place
from bench.programs import ROOT
from bench.trial import Trial
from denoised.model.backends.numerics import PRECISIONS, Precision
from denoised.model.checkpoints.atomic import write_text_atomically

DOCS = ROOT / "docs"
SECTIONS: dict[str, Callable[[Trial], None]] = {
    names.ONE_EVALUATION: measure_evaluations,
    names.LOADS: measure_loads,
}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def accelerator(
    only: Annotated[str, typer.Option(help=f"sections, comma-separated, of {', '.join(SECTIONS)}")] = "",
    precisions: Annotated[str, typer.Option(help=f"of the loads, of {', '.join(PRECISIONS)}")] = "float32,bfloat16",
    seconds: Annotated[float, typer.Option(min=0.1, help="of a load, after a quarter of it to warm up")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="samples of each figure of the loads")] = 2,
    budget: Annotated[float, typer.Option(min=1, help="seconds after which nothing more is begun")] = 600.0,
    device: Annotated[str, typer.Option(help="cuda, cuda:1; cpu for a rehearsal")] = "cuda",
    compiled: Annotated[bool, typer.Option(help="the peers' networks by torch.compile too")] = True,
    out: Annotated[Path, typer.Option(help="where the page and its figures are, and are written")] = DOCS,
    render: Annotated[bool, typer.Option("--render", help="measure nothing, write the page anew")] = False,
) -> None:
    """Measure denoised beside its peers on an accelerator."""
    effort = Effort(rounds=rounds, seconds=seconds, warm_up=seconds / 4, sweep_seconds=seconds / 2, patience=60.0)
    try:
        if render:
            _render(out)
        else:
            _measure(_chosen(only), _precisions(precisions), effort, budget, device, compiled, out)
    except BenchError as error:
        typer.echo(f"bench.accelerator: {error}", err=True)
        raise typer.Exit(1) from error


def _chosen(only: str) -> list[str]:
    """The sections to run, in their order."""
    asked = _listed(only) or list(SECTIONS)
    if unknown := set(asked) - set(SECTIONS):
        raise BenchError(f"--only {', '.join(sorted(unknown))}: there is no such section (of {', '.join(SECTIONS)})")
    return [name for name in SECTIONS if name in asked]


def _precisions(text: str) -> tuple[Precision, ...]:
    asked = _listed(text)
    if unknown := set(asked) - set(PRECISIONS):
        raise BenchError(f"--precisions {', '.join(sorted(unknown))}: none (of {', '.join(PRECISIONS)})")
    return tuple(precision for precision in PRECISIONS if precision in asked)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _measure(
    sections: list[str],
    precisions: tuple[Precision, ...],
    effort: Effort,
    budget: float,
    device: str,
    compiled: bool,
    out: Path,
) -> None:
    if device == "cpu" and out.resolve() == DOCS:
        raise BenchError("--device cpu is a rehearsal: name another folder than docs with --out")
    machine = _machine(device)
    before, found, began = read_figures(out / TABLE), {name: Samples() for name in sections}, time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"[{time.monotonic() - began:6.1f} s] {line}")

    def keep() -> None:
        """What was found takes the place of what was found before; what was not measured again stays."""
        figures, today = before, datetime.now(UTC).date().isoformat()
        for name, samples in found.items():
            figures = figures | samples.figures(name, today, machine)
        write_figures(out / TABLE, figures)
        _render(out)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say(str(machine))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="denoised-bench-")))
        place = Place(folder, effort, say, stack)
        for name in sections:
            say(f"== {name}")
            of_section = precisions if name == names.LOADS else PRECISIONS
            SECTIONS[name](Trial(place, found[name], device, of_section, compiled, keep, began + budget))
            keep()
    say(f"wrote {out / DOCUMENT}")
    typer.echo("\n" + (out / DOCUMENT).read_text(encoding="utf-8"))


def _render(out: Path) -> None:
    write_text_atomically(out / DOCUMENT, document(read_figures(out / TABLE)))


def _machine(device: str) -> Machine:
    """The one that runs this program, named by its accelerator.

    Raises:
        BenchError: when it has none.
    """
    machine = this_machine()
    if device == "cpu":
        return machine
    if not torch.cuda.is_available():
        raise BenchError("there is no CUDA device here")
    return replace(machine, cpu=f"{torch.cuda.get_device_name(device)} beside {machine.cpu}", torch=torch.__version__)


if __name__ == "__main__":
    cli(prog_name="bench.accelerator")
