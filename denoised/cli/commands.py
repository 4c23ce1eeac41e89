"""The commands that call a running server, with their options; the other modules of `denoised.cli` do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from denoised.cli.console import service
from denoised.cli.options import DEFAULT_URL, AsJson, Key, Url, env
from denoised.cli.request_options import with_request_options
from denoised.jobs.request import FIELDS

cli = typer.Typer()

PANEL = "Ask a server"

JobId = Annotated[str, typer.Argument(metavar="ID", help="a job's id, from `denoised jobs`")]
Status = Literal["queued", "running", "succeeded", "failed", "canceled"]


@cli.command(rich_help_panel=PANEL)
@with_request_options(FIELDS)
def generate(
    out: Annotated[Path, env("OUT", "folder for the pictures")] = Path(),
    watch: Annotated[bool, env("WATCH", "show the pictures emerge from the noise", "--watch")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    **given: Any,
) -> None:
    """Generate pictures, write them to a folder, and show them if the terminal can. Ctrl-C cancels the job.

    --watch chooses --preview-every if you leave it out. With --json: the finished job, and the `file` of each of its
    images; with --watch as well, each event on a line before it.
    """
    with service("generate", url, key) as client:
        from denoised.cli.generate import GenerateOptions, fields_from, generate_pictures

        generate_pictures(client, GenerateOptions(fields_from(given), out, watch, as_json))


@cli.command(rich_help_panel=PANEL)
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PNG files made by `denoised generate`")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Make pictures again from the requests that they carry, and compare the bytes.

    Exit code 0: all match. 1: some differ. 2: some could not be made again. With --json: one line per file.
    """
    with service("verify", url, key, trouble=2) as client:
        from denoised.cli.verify import compare

        raise typer.Exit(compare(client, files, as_json))


@cli.command(rich_help_panel=PANEL)
def jobs(
    limit: Annotated[int, env("LIMIT", "list at most this many", "--limit", "-n", min=1)] = 20,
    status: Annotated[Status | None, env("STATUS", "list only jobs with this status")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List your jobs, newest first.

    When piped: one line per job, columns separated by tabs. With --json: {"jobs": […]}.
    """
    with service("jobs", url, key) as client:
        from denoised.cli.listing import list_jobs

        list_jobs(client, limit, status, as_json)


@cli.command(rich_help_panel=PANEL)
def job(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show everything about a job.

    With --json: the job object. Exit code 0, however the job ended.
    """
    with service("job", url, key) as client:
        from denoised.cli.listing import describe_job

        describe_job(client, job_id, as_json)


@cli.command(rich_help_panel=PANEL)
def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="ids of jobs, from `denoised jobs`")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Cancel jobs. Exit code 1 if one has already ended or is unknown; the others are canceled nevertheless.

    With --json: one line per job, the job object or {"id", "error"}.
    """
    with service("cancel", url, key) as client:
        from denoised.cli.listing import cancel_jobs

        raise typer.Exit(cancel_jobs(client, job_ids, as_json))


@cli.command(rich_help_panel=PANEL)
def models(as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the models that are served now; the first is the default.

    When piped: one line per model, columns separated by tabs. With --json: {"models": […]}.
    """
    with service("models", url, key) as client:
        from denoised.cli.listing import list_models

        list_models(client, as_json)


@cli.command(rich_help_panel=PANEL)
def top(
    interval: Annotated[float, env("INTERVAL", "seconds between samples", min=0.5, max=3600)] = 2.0,
    once: Annotated[bool, env("ONCE", "take two samples, print one result and exit", "--once")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Show the queue, how full the batches are, and each worker's evaluations per second. Ctrl-C ends it.

    When piped: one line per worker and sample. With --json: one line per sample.
    """
    with service("top", url, key) as client:
        from denoised.cli.top import watch

        watch(client, url, interval, once, as_json)
