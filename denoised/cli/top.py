"""`denoised top`: the queues, the workers and the quotas, refreshed until Ctrl-C.

Rates are differences between two reports of a worker, over the worker's own clock.
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

from denoised.cli.console import truncate
from denoised.cli.progress import progress_line
from denoised.cli.tables import GAP, fit_table
from denoised.client import Client, FleetStatus, Job, KeyUsage, RequestRejected, WorkerStatus
from denoised.command_line.console import can_redraw, print_json, printable, stdout

SHOWN_JOBS = 8  # most of the caller's unfinished jobs that are shown
FETCHED_JOBS = 30  # the caller's newest jobs, among which the unfinished ones are searched
BAR_WIDTH = 12  # columns
UNKNOWN = "–"
FORBIDDEN, NOT_FOUND = 403, 404
QUOTAS = {  # the columns of the table of keys
    "jobs_per_key": "waiting",
    "evaluations_per_key": "evaluations",
    "evaluations_per_minute": "this minute",
    "evaluations_per_day": "today",
    "images": "images",
    "streams_per_key": "streams",
}


@dataclass(frozen=True)
class WorkerRates:
    """What a worker did per second between two of its reports.

    evaluations, turns: per second.
    rows: mean number of evaluations per turn; None without a turn.
    """

    evaluations: float
    turns: float
    rows: float | None

    @classmethod
    def between(cls, before: WorkerStatus, after: WorkerStatus) -> WorkerRates | None:
        """None if both are the same report, or if the worker restarted between them."""
        seconds = after.reported_at - before.reported_at
        evaluations, turns = after.evaluations - before.evaluations, after.turns - before.turns
        if seconds <= 0 or evaluations < 0 or turns < 0:
            return None
        return cls(evaluations / seconds, turns / seconds, evaluations / turns if turns else None)


class RateTracker:
    """The rates of each worker, kept until its next report."""

    def __init__(self) -> None:
        self._reports: dict[str, WorkerStatus] = {}
        self._rates: dict[str, WorkerRates] = {}

    def update(self, fleet: FleetStatus) -> dict[str, WorkerRates]:
        """Take in the newest reports. Returns the rates of the workers that have reported twice."""
        for worker in fleet.workers:
            before = self._reports.get(worker.name)
            if before is None or worker.reported_at > before.reported_at:
                self._reports[worker.name] = worker
            rates = WorkerRates.between(before, worker) if before is not None else None
            if rates is not None:
                self._rates[worker.name] = rates
        names = {worker.name for worker in fleet.workers}
        return {name: rates for name, rates in self._rates.items() if name in names}


@dataclass(frozen=True)
class TopSnapshot:
    """Everything that is shown at one moment.

    rates: by worker name.
    jobs: the caller's unfinished jobs.
    usage: of all keys, if the caller may see it; else of its own.
    """

    fleet: FleetStatus
    rates: dict[str, WorkerRates]
    jobs: Sequence[Job]
    usage: Sequence[KeyUsage] = ()

    def raw(self) -> dict[str, Any]:
        """As JSON: the object of `GET /workers`, with the rates, the caller's unfinished jobs and the usage added."""
        workers = [{**worker.raw, "rates": self._rates_json(worker.name)} for worker in self.fleet.workers]
        return {
            **self.fleet.raw,
            "workers": workers,
            "jobs": [job.raw for job in self.jobs],
            "usage": [usage.raw for usage in self.usage],
        }

    def _rates_json(self, name: str) -> dict[str, float | None] | None:
        rates = self.rates.get(name)
        if rates is None:
            return None
        return {
            "evaluations_per_second": rates.evaluations,
            "turns_per_second": rates.turns,
            "evaluations_per_turn": rates.rows,
        }


def watch(client: Client, url: str, interval: float, once: bool, as_json: bool) -> None:
    """Print snapshots until Ctrl-C; with `once`, a single one."""
    snapshots = islice(_snapshots(client, interval), 1, None) if once else _snapshots(client, interval)
    console = stdout()
    try:
        if as_json or once or not can_redraw(console):
            for snapshot in islice(snapshots, 1) if once else snapshots:
                if as_json:
                    print_json(snapshot.raw())
                elif once and can_redraw(console):
                    console.print(_render(snapshot, url, console))
                else:
                    _print_plain(snapshot)
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for snapshot in snapshots:
                live.update(_render(snapshot, url, console), refresh=True)
    except KeyboardInterrupt:
        return  # the usual way to leave


def _render(snapshot: TopSnapshot, url: str, console: Console) -> RenderableType:
    """A snapshot at the width of the console."""
    fleet = snapshot.fleet
    clock = datetime.fromtimestamp(fleet.at).astimezone().strftime("%H:%M:%S")
    jobs, evaluations = sum(q.jobs for q in fleet.waiting), sum(q.evaluations for q in fleet.waiting)
    speed = sum(rates.evaluations for rates in snapshot.rates.values())
    head = Text(f"{clock}  {speed:,.0f} evaluations/s  {jobs} jobs waiting ({evaluations:,} evaluations)", style="bold")
    parts: list[RenderableType] = [
        head,
        Text(url),
        Text(),
        _workers(snapshot, console),
        Text(),
        _queues(fleet, console),
    ]
    if snapshot.usage:
        parts += [Text(), _usage(snapshot.usage, console)]
    return Group(*parts, *([Text(), _jobs(snapshot.jobs, console)] if snapshot.jobs else []))


def _snapshots(client: Client, interval: float) -> Iterator[TopSnapshot]:
    tracker = RateTracker()
    while True:
        started = time.monotonic()
        fleet = client.workers()
        own_jobs = [job for job in client.jobs(FETCHED_JOBS) if not job.is_finished][:SHOWN_JOBS]
        yield TopSnapshot(fleet, tracker.update(fleet), own_jobs, _fetch_usage(client))
        time.sleep(max(0.0, interval - (time.monotonic() - started)))


def _fetch_usage(client: Client) -> list[KeyUsage]:
    """The usage of all keys, or of the caller's own if it may not see those; none of a server without keys."""
    try:
        return [usage for usage in client.usage_of_all_keys() if usage.key]
    except RequestRejected as error:
        if error.status == FORBIDDEN:
            return [client.usage()]
        if error.status == NOT_FOUND:  # a server of an earlier version
            return []
        raise


def _usage(usage: Sequence[KeyUsage], console: Console) -> RenderableType:
    rows: list[list[RenderableType]] = [[Text(printable(each.key)), f"{each.weight:g}", *_used(each)] for each in usage]
    headings = ["key", ">weight", *(f">{heading}" for heading in QUOTAS.values())]
    return fit_table(console, headings, rows, [">streams", ">weight", ">images"])


def _used(usage: KeyUsage) -> list[str]:
    """What is used of each quota, and what is allowed."""
    quotas = [usage.quota(name) for name in QUOTAS]
    return [
        UNKNOWN if quota is None else f"{quota.used:,}" + ("" if quota.allowed is None else f"/{quota.allowed:,}")
        for quota in quotas
    ]


def _workers(snapshot: TopSnapshot, console: Console) -> RenderableType:
    if not snapshot.fleet.workers:
        return Text("no worker: start one with 'denoised worker', or everything with 'denoised serve'", style="yellow")
    headings = ["worker", "device", "", ">batch", ">evals/s", ">evals/turn", ">turns/s", ">pending", ">jobs", "models"]
    rows = [_row(worker, snapshot.rates.get(worker.name)) for worker in snapshot.fleet.workers]
    return fit_table(console, headings, rows, ["models", "", ">jobs", ">turns/s", ">pending", "device"])


def _row(worker: WorkerStatus, rates: WorkerRates | None) -> list[RenderableType]:
    return [
        Text(printable(worker.name.removeprefix("worker-"))),
        Text(printable(worker.device)),
        ProgressBar(total=worker.max_batch, completed=min(worker.trajectories, worker.max_batch), width=BAR_WIDTH),
        f"{worker.trajectories}/{worker.max_batch}",
        *_numbers(rates),
        f"{worker.pending_evaluations:,}",
        f"{worker.jobs:,}",
        Text(printable(", ".join(worker.models))),
    ]


def _numbers(rates: WorkerRates | None) -> tuple[str, str, str]:
    if rates is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    rows = UNKNOWN if rates.rows is None else f"{rates.rows:.1f}"
    return f"{rates.evaluations:,.0f}", rows, f"{rates.turns:.1f}"


def _queues(fleet: FleetStatus, console: Console) -> RenderableType:
    rows = [(Text(printable(q.model)), f"{q.jobs:,}", f"{q.evaluations:,}") for q in fleet.waiting]
    return fit_table(console, ["queue", ">jobs", ">evaluations"], rows)


def _jobs(jobs: Sequence[Job], console: Console) -> RenderableType:
    names = [printable(f"{job.id[:8]}  {job.n}× {truncate(job.title)}") for job in jobs]
    width = console.width - max(map(len, names)) - GAP
    lines = [progress_line(job, job.step, job.eta_seconds, width) for job in jobs]
    return fit_table(console, ["your jobs", ""], [(Text(name), line) for name, line in zip(names, lines, strict=True)])


def _print_plain(snapshot: TopSnapshot) -> None:
    """Print a line for the queues, one per worker and one per key, as name=value."""
    fleet = snapshot.fleet
    waiting = sum(queue.jobs for queue in fleet.waiting)
    typer.echo(f"queue jobs={waiting} evaluations={sum(queue.evaluations for queue in fleet.waiting)}")
    for worker in fleet.workers:
        rates = snapshot.rates.get(worker.name)
        speed = "?" if rates is None else f"{rates.evaluations:.1f}"
        rows = "?" if rates is None or rates.rows is None else f"{rates.rows:.1f}"
        batch = f"batch={worker.trajectories}/{worker.max_batch} pending={worker.pending_evaluations}"
        device = f"device={printable(worker.device).replace(' ', '_') or UNKNOWN}"
        typer.echo(f"worker {printable(worker.name)} {device} {batch} evaluations/s={speed} evaluations/turn={rows}")
    for usage in snapshot.usage:
        used = " ".join(f"{quota.name}={quota.used}/{quota.allowed or UNKNOWN}" for quota in usage.quotas)
        typer.echo(f"key {printable(usage.key)} weight={usage.weight:g} {used}")
