"""The commands that ask a served model about a picture, with their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from denoised.cli.commands import PANEL
from denoised.cli.console import open_client
from denoised.cli.options import DEFAULT_URL, Key, Url
from denoised.cli.request_options import with_request_options
from denoised.command_line.options import AsJson, env
from denoised.jobs.request_field import RequestField
from denoised.jobs.task_request import ARRAY, TASK_FIELDS, PictureTask

cli = typer.Typer()

Picture = Annotated[str, typer.Argument(metavar="PICTURE", help="a PNG, JPEG or WebP file, or job:ID/images/K")]
Out = Annotated[Path, env("OUT", "folder for the files")]


Point = Annotated[
    str, typer.Argument(metavar="PICTURE", help="a PNG, JPEG or WebP file, job:ID/images/K, or x_t as an .npy file")
]


def _options(task: PictureTask) -> dict[str, RequestField]:
    """The fields of a request that are options; the picture, or the array, is an argument."""
    return {name: field for name, field in TASK_FIELDS[task].items() if name not in ("image", ARRAY)}


@cli.command(rich_help_panel=PANEL)
@with_request_options(_options("noise"))
def noise(
    picture: Picture, out: Out = Path(), as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None, **given: Any
) -> None:
    """Add the noise of a level to a picture, and write x_t as a picture and as an .npy file.

    With --json: the job, and the `files` that were written.
    """
    _run("noise", "noise", picture, out, as_json, url, key, given)


@cli.command(rich_help_panel=PANEL)
@with_request_options(_options("score"))
def score(
    picture: Point, out: Out = Path(), as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None, **given: Any
) -> None:
    """Compute a model's score of a picture at a noise level, and write score, x̂_0, ε̂ and x_t as files.

    Without --seed the picture is x_t itself; an .npy file of float32 (channels, height, width) always is. With --json:
    the job, and the `files` that were written.
    """
    _run("score", "score", picture, out, as_json, url, key, given)


@cli.command("picture-likelihood", rich_help_panel=PANEL)
@with_request_options(_options("likelihood"))
def picture_likelihood(
    picture: Picture, as_json: AsJson = False, url: Url = DEFAULT_URL, key: Key = None, **given: Any
) -> None:
    """Estimate how many bits per dimension a picture takes under a served model.

    With --json: the job. `denoised likelihood` measures many images under a model folder, without a server.
    """
    _run("picture-likelihood", "likelihood", picture, None, as_json, url, key, given)


def _run(
    command: str,
    task: PictureTask,
    picture: str,
    out: Path | None,
    as_json: bool,
    url: str,
    key: str | None,
    given: dict[str, Any],
) -> None:
    with open_client(command, url, key) as client:
        from denoised.cli.tasks import TaskOptions, run_task

        run_task(client, TaskOptions(task, picture, given, out, as_json))
