"""The commands that call a running server, with their options. The other modules of this package implement them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from denoised.cli.console import open_client
from denoised.cli.options import DEFAULT_URL, AsJson, Key, Url, env

cli = typer.Typer()

PANEL = "Call a server"

Watch = Annotated[bool, env("WATCH", "show the images while they are denoised", "--watch")]
PreviewEvery = Annotated[
    int | None, env("PREVIEW_EVERY", "show a frame every k steps; default with --watch: about 100 frames")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="a job id from `denoised jobs`")]
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
    """Generate images, write them to a folder, and show them if the terminal can. Ctrl-C cancels the job.

    With --json: the finished job, with the `file` of each image; with --watch also one line per event before it.
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
    with open_client("generate", url, key) as client:
        from denoised.cli.generate import GenerateOptions, generate_images

        name_or_index = int(label) if label is not None and label.isdecimal() else label
        generate_images(client, GenerateOptions(name_or_index, request, out, watch, as_json))


@cli.command(rich_help_panel=PANEL)
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PNG files written by `denoised generate`")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Regenerate images from the request that they carry, and compare the bytes.

    Exit code 0: all are equal. 1: some differ. 2: some could not be regenerated. With --json: one line per file.
    """
    with open_client("verify", url, key, error_code=2) as client:
        from denoised.cli.verify import verify_files

        raise typer.Exit(verify_files(client, files, as_json))


@cli.command(rich_help_panel=PANEL)
def jobs(
    limit: Annotated[int, env("LIMIT", "largest number of jobs", "--limit", "-n", min=1)] = 20,
    status: Annotated[Status | None, env("STATUS", "only jobs with this status")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List your jobs, newest first.

    When piped: one line per job, with tab-separated columns. With --json: {"jobs": […]}.
    """
    with open_client("jobs", url, key) as client:
        from denoised.cli.listing import list_jobs

        list_jobs(client, limit, status, as_json)


@cli.command(rich_help_panel=PANEL)
def job(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show the state of a job and everything else about it.

    With --json: the job object. Exit code 0 whatever the job's status.
    """
    with open_client("job", url, key) as client:
        from denoised.cli.listing import describe_job

        describe_job(client, job_id, as_json)


@cli.command(rich_help_panel=PANEL)
def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="job ids from `denoised jobs`")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Cancel jobs. If one has already finished or is unknown, the exit code is 1 and the others are still canceled.

    With --json: one line per job, the job object or {"id", "error"}.
    """
    with open_client("cancel", url, key) as client:
        from denoised.cli.listing import cancel_jobs

        raise typer.Exit(cancel_jobs(client, job_ids, as_json))


@cli.command(rich_help_panel=PANEL)
def models(as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the models served now; the first is the default.

    When piped: one line per model, with tab-separated columns. With --json: {"models": […]}.
    """
    with open_client("models", url, key) as client:
        from denoised.cli.listing import list_models

        list_models(client, as_json)


@cli.command(rich_help_panel=PANEL)
def top(
    interval: Annotated[float, env("INTERVAL", "seconds between refreshes", min=0.5, max=3600)] = 2.0,
    once: Annotated[bool, env("ONCE", "print once, after two samples, and exit", "--once")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Watch the queues, the batches and the evaluations per second of each worker. Ctrl-C exits.

    When piped: one line per worker and refresh. With --json: one line per refresh.
    """
    with open_client("top", url, key) as client:
        from denoised.cli.top import watch

        watch(client, url, interval, once, as_json)
