"""The commands that call a running server, with their options. The other modules of this package implement them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from denoised.cli.console import open_client
from denoised.cli.offered_values import ListingCommand, list_missing, list_unknown
from denoised.cli.options import DEFAULT_URL, Key, Url
from denoised.cli.request_options import with_request_options
from denoised.command_line.options import AsJson, env
from denoised.command_line.service_options import ModelsFolder
from denoised.jobs.request import FIELDS

cli = typer.Typer()

PANEL = "Call a server"

JobId = Annotated[str, typer.Argument(metavar="ID", help="a job id from `denoised jobs`")]
Status = Literal["queued", "running", "succeeded", "failed", "canceled"]


@cli.command(rich_help_panel=PANEL, cls=ListingCommand)
@with_request_options(FIELDS)
def generate(
    text: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT]", help="the prompt, or for a model of labels the label", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None, env("PROMPTS", "file of prompts (or labels), one per line; a job for each", metavar="FILE")
    ] = None,
    extend: Annotated[
        str | None,
        env("EXTEND", "continue the picture of --image beyond its edges: 25, or right=50,top=10, in percent of a side"),
    ] = None,
    out: Annotated[Path, env("OUT", "folder for the images")] = Path(),
    watch: Annotated[bool, env("WATCH", "show the images while they are denoised", "--watch")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    **given: Any,
) -> None:
    """Generate images, write them to a folder, and show them if the terminal can. Ctrl-C cancels the job.

    More images than one job may hold, and --prompts, are several jobs; the same command continues an interrupted one.
    With --watch, --preview-every defaults to about 100 frames. With --json: the finished job, with the `file` of each
    image; with --watch also one line per event before it. --model, --sampler, --label, --spacing, --format, --preview
    and --priority without a value list those that they take.
    """
    with open_client("generate", url, key) as client:
        from denoised.cli.extension import parse_extension
        from denoised.cli.generate import GenerateOptions, check_text, fields_from, generate_to_folder
        from denoised.client import ServiceError

        list_missing(client, given, as_json)
        fields = fields_from(given)
        check_text(text, fields, prompts)
        try:
            extension = None if extend is None else parse_extension(extend)
            generate_to_folder(client, GenerateOptions(fields, out, watch, as_json, text, prompts, extension))
        except ServiceError as error:
            list_unknown(error, client, given)
            raise


@cli.command(rich_help_panel=PANEL)
def fetch(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="job ids from `denoised jobs`")],
    out: Annotated[Path, env("OUT", "folder for the images")] = Path(),
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Write the images of finished jobs to a folder. No file is overwritten.

    With --json: one line per job, with the `file` of each image.
    """
    with open_client("fetch", url, key) as client:
        from denoised.cli.fetch import fetch_jobs

        raise typer.Exit(fetch_jobs(client, job_ids, out, as_json))


@cli.command(rich_help_panel=PANEL)
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PNG files written by `denoised generate`")],
    image: Annotated[Path | None, env("IMAGE", "the picture that they were made from", metavar="FILE")] = None,
    mask: Annotated[Path | None, env("MASK", "the mask that they were made with", metavar="FILE")] = None,
    control: Annotated[
        list[Path] | None,
        env("CONTROL", "the picture of each of their ControlNets, in order", "--control", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Regenerate images from the request that they carry, and compare the bytes.

    Exit code 0: all are equal. 1: some differ. 2: some could not be regenerated. With --json: one line per file.
    """
    with open_client("verify", url, key, error_code=2) as client:
        from denoised.cli.verify import PictureFiles, verify_files

        raise typer.Exit(verify_files(client, files, as_json, PictureFiles(image, mask, control or ())))


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
        from denoised.cli.listing import print_jobs

        print_jobs(client, limit, status, as_json)


@cli.command(rich_help_panel=PANEL)
def job(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show the state of a job and everything else about it.

    With --json: the job object. Exit code 0 whatever the job's status.
    """
    with open_client("job", url, key) as client:
        from denoised.cli.listing import print_job

        print_job(client, job_id, as_json)


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
def models(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME] | add|remove|reload NAME...",
            help="show only this model, with its labels or prompts; or order something about models, as an operator",
            show_default=False,
        ),
    ] = None,
    models_folder: ModelsFolder = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List the models served now; the first is the default. With NAME: show one model's labels, or how its prompts
    are written, and its samplers. Operators: `models remove NAME` serves a model no more, `models add NAME` serves it
    again, `models reload NAME` reads its files again; `models add ./FOLDER` links a folder into --models-folder.

    When piped: one line per model, with tab-separated columns. With --json: {"models": […]}.
    """
    with open_client("models", url, key) as client:
        from denoised.cli.listing import print_models
        from denoised.cli.model_orders import order_models, order_of

        order = order_of(words or [])
        if order is not None:
            raise typer.Exit(order_models(client, *order, models_folder, as_json))
        if words is not None and len(words) > 1:
            raise typer.BadParameter(f"{words[0]!r} is not add, remove or reload", param_hint="NAME")
        print_models(client, as_json, words[0] if words else None)


@cli.command(rich_help_panel=PANEL)
def top(
    interval: Annotated[float, env("INTERVAL", "seconds between refreshes", min=0.5, max=3600)] = 2.0,
    once: Annotated[bool, env("ONCE", "print once, after two samples, and exit", "--once")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Watch the queues, the batches and the evaluations per second of each worker. Ctrl-C exits.

    A turn is one evaluation of the network for a batch. When piped: one line per worker and refresh. With --json: one
    line per refresh.
    """
    with open_client("top", url, key) as client:
        from denoised.cli.top import watch

        watch(client, url, interval, once, as_json)
