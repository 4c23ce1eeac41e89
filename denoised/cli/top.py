"""`denoised top`: what waits, and what each worker does, look after look.

Rates are differences between two reports of a worker, by the worker's own clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from denoised.cli.console import lively, printable, say_json, stdout
from denoised.cli.progress import bar
from denoised.cli.tables import GAP, fitted
from denoised.client import Client, Fleet, Job, Worker

JOBS = 8  # of the caller's own that are shown
OWN = 30  # of the caller's newest jobs, in which those are looked for
BAR = 12
UNKNOWN = "–"


@dataclass(frozen=True)
class Rates:
    """What a worker did between two of its reports, a second. rows: of a turn, on average; None when there was none."""

    evaluations: float
    turns: float
    rows: float | None

    @classmethod
    def between(cls, before: Worker, after: Worker) -> Rates | None:
        """None when they are one report, or of two lives of a worker."""
        seconds = after.reported_at - before.reported_at
        evaluations, turns = after.evaluations - before.evaluations, after.turns - before.turns
        if seconds <= 0 or evaluations < 0 or turns < 0:
            return None
        return cls(evaluations / seconds, turns / seconds, evaluations / turns if turns else None)


class Rater:
    """Rates of each worker, kept until its next report."""

    def __init__(self) -> None:
        self._reports: dict[str, Worker] = {}
        self._rates: dict[str, Rates] = {}

    def rates(self, fleet: Fleet) -> dict[str, Rates]:
        """Of the workers that have reported twice."""
        for worker in fleet.workers:
            before = self._reports.get(worker.name)
            if before is None or worker.reported_at > before.reported_at:
                self._reports[worker.name] = worker
            rates = Rates.between(before, worker) if before is not None else None
            if rates is not None:
                self._rates[worker.name] = rates
        names = {worker.name for worker in fleet.workers}
        return {name: rates for name, rates in self._rates.items() if name in names}


@dataclass(frozen=True)
class QueueSnapshot:
    """All that is shown at one moment."""

    fleet: Fleet
    rates: dict[str, Rates]
    jobs: Sequence[Job]

    def raw(self) -> dict[str, Any]:
        """As JSON: the service's object, with rates, and the caller's jobs that are not over."""
        workers = [{**worker.raw, "rates": self._rates(worker.name)} for worker in self.fleet.workers]
        return {**self.fleet.raw, "workers": workers, "jobs": [job.raw for job in self.jobs]}

    def _rates(self, name: str) -> dict[str, float | None] | None:
        rates = self.rates.get(name)
        if rates is None:
            return None
        return {
            "evaluations_per_second": rates.evaluations,
            "turns_per_second": rates.turns,
            "evaluations_per_turn": rates.rows,
        }


def watch(client: Client, url: str, interval: float, once: bool, as_json: bool) -> None:
    """Show look after look until Ctrl-C, or one."""
    looks = islice(_looks(client, interval), 1, None) if once else _looks(client, interval)
    console = stdout()
    try:
        if as_json or once or not lively(console):
            for look in islice(looks, 1) if once else looks:
                if as_json:
                    say_json(look.raw())
                elif once and lively(console):
                    console.print(screen(look, url, console))
                else:
                    _lines(look)
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for look in looks:
                live.update(screen(look, url, console), refresh=True)
    except KeyboardInterrupt:
        return  # that is how it is left


def screen(look: QueueSnapshot, url: str, console: Console) -> RenderableType:
    """A look, as wide as the console."""
    fleet = look.fleet
    moment = datetime.fromtimestamp(fleet.at).astimezone().strftime("%H:%M:%S")
    jobs, evaluations = sum(q.jobs for q in fleet.waiting), sum(q.evaluations for q in fleet.waiting)
    speed = sum(rates.evaluations for rates in look.rates.values())
    head = Text(f"{moment}  {speed:,.0f} evaluations/s  {jobs} jobs wait ({evaluations:,} evaluations)", style="bold")
    parts: list[RenderableType] = [head, Text(url), Text(), _workers(look, console), Text(), _queues(fleet, console)]
    return Group(*parts, *([Text(), _own(look.jobs, console)] if look.jobs else []))


def _looks(client: Client, interval: float) -> Iterator[QueueSnapshot]:
    rater = Rater()
    while True:
        started = time.monotonic()
        fleet = client.workers()
        own = [job for job in client.jobs(OWN) if not job.over][:JOBS]
        yield QueueSnapshot(fleet, rater.rates(fleet), own)
        time.sleep(max(0.0, interval - (time.monotonic() - started)))


def _workers(look: QueueSnapshot, console: Console) -> RenderableType:
    if not look.fleet.workers:
        return Text("no worker: start one with 'denoised worker', or all with 'denoised serve'", style="yellow")
    heads = ["worker", "", ">batch", ">evals/s", ">a turn", ">turns/s", ">pending", ">jobs", "models"]
    rows = [_row(worker, look.rates.get(worker.name)) for worker in look.fleet.workers]
    return fitted(console, heads, rows, ["models", "", ">jobs", ">turns/s", ">pending"])


def _row(worker: Worker, rates: Rates | None) -> list[RenderableType]:
    return [
        Text(printable(worker.name.removeprefix("worker-"))),
        ProgressBar(total=worker.max_batch, completed=min(worker.trajectories, worker.max_batch), width=BAR),
        f"{worker.trajectories}/{worker.max_batch}",
        *_numbers(rates),
        f"{worker.pending_evaluations:,}",
        f"{worker.jobs:,}",
        Text(printable(", ".join(worker.models))),
    ]


def _numbers(rates: Rates | None) -> tuple[str, str, str]:
    if rates is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    rows = UNKNOWN if rates.rows is None else f"{rates.rows:.1f}"
    return f"{rates.evaluations:,.0f}", rows, f"{rates.turns:.1f}"


def _queues(fleet: Fleet, console: Console) -> RenderableType:
    rows = [(Text(printable(q.model)), f"{q.jobs:,}", f"{q.evaluations:,}") for q in fleet.waiting]
    return fitted(console, ["queue", ">jobs", ">evaluations"], rows)


def _own(jobs: Sequence[Job], console: Console) -> RenderableType:
    names = [printable(f"{job.id[:8]}  {job.n}× {job.label or job.model}") for job in jobs]
    room = console.width - max(map(len, names)) - GAP
    bars = [bar(job, job.step, job.eta_seconds, room) for job in jobs]
    return fitted(console, ["your jobs", ""], [(Text(name), bar) for name, bar in zip(names, bars, strict=True)])


def _lines(look: QueueSnapshot) -> None:
    """A line for what waits and one a worker, as name=value."""
    fleet = look.fleet
    waiting = sum(queue.jobs for queue in fleet.waiting)
    typer.echo(f"queue jobs={waiting} evaluations={sum(queue.evaluations for queue in fleet.waiting)}")
    for worker in fleet.workers:
        rates = look.rates.get(worker.name)
        speed = "?" if rates is None else f"{rates.evaluations:.1f}"
        rows = "?" if rates is None or rates.rows is None else f"{rates.rows:.1f}"
        batch = f"batch={worker.trajectories}/{worker.max_batch} pending={worker.pending_evaluations}"
        typer.echo(f"worker {printable(worker.name)} {batch} evaluations/s={speed} evaluations/turn={rows}")
