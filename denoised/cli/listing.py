"""`denoised jobs`, `job`, `cancel` and `models`: tables on a terminal, tab-separated lines elsewhere, or JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime

import typer
from rich.text import Text

from denoised.cli.console import OK, complain, duration, exit_code, lively, printable, say, say_json, stdout
from denoised.cli.tables import fitted
from denoised.client import Client, Job, Model, ServiceError
from denoised.client.results import Status

COLOURS = {"queued": "yellow", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "magenta"}
NO = "-"


def list_jobs(client: Client, limit: int, status: Status | None, as_json: bool) -> None:
    """The caller's newest jobs."""
    found = list(client.jobs(limit, status))
    if as_json:
        say_json({"jobs": [job.raw for job in found]})
        return
    rows = [(job.id, job.status, job.model, job.label or NO, str(job.n), _steps(job), _age(job)) for job in found]
    _print(["id", "status", "model", "label", ">n", ">step", ">age"], rows, ["model", ">n", "label", ">age"])


def describe_job(client: Client, job_id: str, as_json: bool) -> None:
    """All that is known of a job."""
    job = client.job(job_id)
    if as_json:
        say_json(job.raw)
        return
    _print(["", ""], [row for row in _facts(job) if row[1]])


def cancel_jobs(client: Client, job_ids: Iterable[str], as_json: bool) -> int:
    """End jobs, a line each; returns the exit code, that of the first which could not be ended."""
    codes = [_cancel(client, job_id, as_json) for job_id in job_ids]
    return next((code for code in codes if code != OK), OK)


def list_models(client: Client, as_json: bool) -> None:
    """The models that are served."""
    found = client.models()
    if as_json:
        say_json({"models": [model.raw for model in found]})
        return
    heads = ["model", "size", ">classes", "default", ">largest n", ">workers"]
    _print(heads, [_summary(model) for model in found], [">largest n", ">workers", ">classes", "size"])


def _cancel(client: Client, job_id: str, as_json: bool) -> int:
    try:
        job = client.cancel(job_id)
    except ServiceError as error:
        if as_json:
            say_json({"id": job_id, "error": str(error)})
        else:
            complain("cancel", error)
        return exit_code(error)
    if as_json:
        say_json(job.raw)
    else:
        say(f"job {job.id} was canceled")
    return OK


def _steps(job: Job) -> str:
    return f"{job.step}/{job.steps}"


def _age(job: Job) -> str:
    return duration(max(0.0, time.time() - job.created_at))


def _facts(job: Job) -> list[tuple[str, str]]:
    """Names and values; a value that is not known (yet) is empty."""
    timing = job.timing
    guided = f", guidance {job.guidance_scale:g}" if job.guidance_scale != 1 else ""
    ahead = "" if job.queue_position is None else f" ({job.queue_position} ahead)"
    batch = "" if timing.mean_batch is None else f", {timing.mean_batch:.1f} images an evaluation on average"
    return [
        ("id", job.id),
        ("status", job.status + ahead),
        ("error", f"{job.error.code}: {job.error.message}" if job.error else ""),
        ("model", job.model),
        ("label", job.label or NO),
        ("images", f"{job.n}, of seed {job.seed}" + (f" … {job.seed + job.n - 1}" if job.n > 1 else "")),
        ("sampler", f"{job.sampler}, {job.steps} steps{guided}"),
        ("progress", f"step {_steps(job)}" + (f", attempt {job.attempt}" if job.attempt > 1 else "")),
        ("to go", "" if job.eta_seconds is None else f"about {duration(job.eta_seconds)}"),
        ("created", _moment(job.created_at)),
        ("waited", "" if timing.queued is None else duration(timing.queued)),
        ("ran", "" if timing.running is None else duration(timing.running)),
        ("evaluations", f"{timing.evaluations}{batch}"),
        ("numerics", job.numerics or ""),
        *((f"image {image.index}", f"{image.url}  sha256 {image.sha256}") for image in job.images),
        ("events", f"/jobs/{job.id}/events"),
        ("animation", f"/jobs/{job.id}/animation"),
    ]


def _moment(seconds: float) -> str:
    """Local time."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _summary(model: Model) -> tuple[str, ...]:
    default = model.default
    guided = f", guidance {default.guidance_scale:g}" if default.guidance_scale != 1 else ""
    return (
        model.name,
        f"{model.width}×{model.height}×{model.channels}",
        str(len(model.labels)),
        f"{default.sampler}, {default.steps} steps{guided}",
        str(model.max_images),
        str(model.workers),
    )


def _print(heads: Sequence[str], rows: Sequence[Sequence[str]], expendable: Sequence[str] = ()) -> None:
    """Rows for people or for programs."""
    console = stdout()
    if not lively(console):
        for row in rows:
            typer.echo("\t".join(printable(cell) for cell in row))
    elif rows:
        cells = [[Text(printable(cell), style=COLOURS.get(cell, "")) for cell in row] for row in rows]
        console.print(fitted(console, heads, cells, expendable))
