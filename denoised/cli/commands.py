"""The commands that ask a running server: their options. What they do stands in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from denoised.cli.console import service
from denoised.cli.options import DEFAULT_URL, AsJson, Key, Url, env

cli = typer.Typer()

PANEL = "Ask a server"

Watch = Annotated[bool, env("WATCH", "show the pictures come out of the noise", "--watch")]
PreviewEvery = Annotated[int | None, env("PREVIEW_EVERY", "a frame every k-th step; --watch chooses if left out")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="as `denoised jobs` lists it")]
Status = Literal["queued", "running", "succeeded", "failed", "canceled"]


@cli.command(rich_help_panel=PANEL)
def generate(
    label: Annotated[str | None, env("LABEL", "class name or index; none = unconditional")] = None,
    n: Annotated[int, env("N", "images", "-n")] = 1,
    out: Annotated[Path, env("OUT", "folder for the pictures")] = Path(),
    model: Annotated[str | None, env("MODEL", "a served model's name")] = None,
    seed: Annotated[int | None, env("SEED", "of the first image; drawn if left out")] = None,
    sampler: Annotated[str | None, env("SAMPLER", "one of those in `denoised models`")] = None,
    steps: Annotated[int | None, env("STEPS", "steps of the sampler")] = None,
    eta: Annotated[float | None, env("ETA", "noise of ddim, 0 … 1")] = None,
    guidance_scale: Annotated[float | None, env("GUIDANCE_SCALE", "1 = off … 20")] = None,
    guidance_rescale: Annotated[float | None, env("GUIDANCE_RESCALE", "0 = off … 1")] = None,
    spacing: Annotated[str | None, env("SPACING", "of the timesteps: leading, trailing or linspace")] = None,
    karras: Annotated[bool | None, env("KARRAS", "noise levels of Karras et al. 2022", "--karras/--no-karras")] = None,
    format: Annotated[str | None, env("FORMAT", "png, webp or jpeg")] = None,
    watch: Watch = False,
    preview: Annotated[str | None, env("PREVIEW", "what --watch shows: x0, xt or both")] = None,
    preview_every: PreviewEvery = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Ask for pictures, write them to a folder, and show them where the terminal can. Ctrl-C cancels the job.

    With --json: the finished job, its images with the `file` of each; with --watch too, one line an event before it.
    """
    asked = {
        "n": n,
        "model": model,
        "seed": seed,
        "sampler": sampler,
        "steps": steps,
        "eta": eta,
        "guidance_scale": guidance_scale,
        "guidance_rescale": guidance_rescale,
        "spacing": spacing,
        "karras": karras,
        "format": format,
        "preview": preview,
        "preview_every": preview_every,
    }
    request = {name: value for name, value in asked.items() if value is not None}
    with service("generate", url, key) as client:
        from denoised.cli.generate import Wish, fulfil

        wanted = int(label) if label is not None and label.isdecimal() else label
        fulfil(client, Wish(wanted, request, out, watch, as_json))


@cli.command(rich_help_panel=PANEL)
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PNGs as generate makes them")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Have pictures made again from what they carry, and the bytes compared.

    Exit code 0: all are the same. 1: some are not. 2: some could not be made again. With --json: a line a file.
    """
    with service("verify", url, key, trouble=2) as client:
        from denoised.cli.verify import compare

        raise typer.Exit(compare(client, files, as_json))


@cli.command(rich_help_panel=PANEL)
def jobs(
    limit: Annotated[int, env("LIMIT", "at most so many", "--limit", "-n", min=1)] = 20,
    status: Annotated[Status | None, env("STATUS", "only these")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List your jobs, newest first.

    No terminal: a line a job, its columns separated by tabs. With --json: {"jobs": […]}.
    """
    with service("jobs", url, key) as client:
        from denoised.cli.listing import list_jobs

        list_jobs(client, limit, status, as_json)


@cli.command(rich_help_panel=PANEL)
def job(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Say how a job stands, and all that is known of it.

    With --json: the job object. Exit code 0 whatever became of it.
    """
    with service("job", url, key) as client:
        from denoised.cli.listing import describe_job

        describe_job(client, job_id, as_json)


@cli.command(rich_help_panel=PANEL)
def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="as `denoised jobs` lists them")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """End jobs. Exit code 1 when one was over already or is unknown; the others are canceled all the same.

    With --json: a line a job, the job object or {"id", "error"}.
    """
    with service("cancel", url, key) as client:
        from denoised.cli.listing import cancel_jobs

        raise typer.Exit(cancel_jobs(client, job_ids, as_json))


@cli.command(rich_help_panel=PANEL)
def models(as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the models that are served now; the first is the default.

    No terminal: a line a model, its columns separated by tabs. With --json: {"models": […]}.
    """
    with service("models", url, key) as client:
        from denoised.cli.listing import list_models

        list_models(client, as_json)


@cli.command(rich_help_panel=PANEL)
def top(
    interval: Annotated[float, env("INTERVAL", "seconds between looks", min=0.5, max=3600)] = 2.0,
    once: Annotated[bool, env("ONCE", "one look (of two samples) and the end", "--once")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Watch the queue, how full the batches are, and each worker's evaluations a second. Ctrl-C ends it.

    No terminal: a line a worker and look. With --json: a line a look.
    """
    with service("top", url, key) as client:
        from denoised.cli.top import watch

        watch(client, url, interval, once, as_json)
