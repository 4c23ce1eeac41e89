"""`denoised noise`, `score` and `picture-likelihood`: ask a served model about a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import typer

from denoised.cli.console import print_line
from denoised.cli.fetch import save_images
from denoised.cli.generate import fields_from, resolve_label
from denoised.cli.network_options import NAMED_PICTURE
from denoised.cli.output_folder import OutputFolder
from denoised.client import Client, Job
from denoised.command_line.console import print_json
from denoised.jobs.request import PictureSource, RequestFields
from denoised.jobs.task_request import TASK_FIELDS, PictureTask

NPY = ".npy"


@dataclass(frozen=True)
class TaskOptions:
    """Options of a command that asks about a picture.

    picture: a file, or job:ID/images/K; for a score also an .npy file.
    given: the options for request fields.
    out: folder for pictures and arrays; None for a command that writes none.
    """

    task: PictureTask
    picture: str
    given: Mapping[str, Any]
    out: Path | None
    as_json: bool


def run_task(client: Client, options: TaskOptions) -> None:
    """Submit a job, wait for it, write what it has computed, and print the numbers.

    Raises:
        ServiceError: if the job ends without a result.
        OSError: if the files cannot be written.
    """
    folder = OutputFolder(options.out) if options.out is not None else None
    fields = cast("dict[str, Any]", fields_from(options.given, TASK_FIELDS[options.task]))
    if "label" in fields:
        fields = dict(resolve_label(cast(RequestFields, fields), client.models()))
    ask: Mapping[str, Callable[..., Job]] = {
        "noise": client.noise,
        "score": client.score,
        "likelihood": client.likelihood,
    }
    source = _source(options.picture)
    if options.task == "score" and Path(options.picture).suffix == NPY:
        job = client.score(x_t=source, **fields)
    else:
        job = ask[options.task](source, **fields)
    files = _save(client, job, folder) if folder is not None else []
    if options.as_json:
        print_json({**job.raw, "files": [str(path) for path in files]})
        return
    for path in files:
        print_line(str(path))
    print_line(_summary(job))


def _source(picture: str) -> PictureSource:
    """The picture as the client takes it.

    Raises:
        typer.BadParameter: if there is no such file.
    """
    if NAMED_PICTURE.match(picture):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{picture!r} cannot be read ({error.strerror})", param_hint="PICTURE") from None


def _save(client: Client, job: Job, folder: OutputFolder) -> list[Path]:
    """Write the images of a job, its arrays, and a picture of each array that is not an image."""
    paths = [path for path, _ in save_images(client, job, folder)]
    shown = {"noise": "x_t", "score": "x0"}[job.task]
    for array in job.arrays:
        name, seed = f"{job.title}-{array.name.replace('_', '')}", job.seed + array.index
        paths.append(folder.save(name, seed, "npy", client.array(array)))
        if array.name != shown:
            paths.append(folder.save(name, seed, "png", client.image(array.picture)))
    return paths


def _summary(job: Job) -> str:
    """The numbers of a job in one line."""
    result = job.result or {}
    if job.task == "likelihood":
        error, count = result["standard_error"], len(result["estimates"])
        dimensions = f"{result['dimensions']} dimensions of {result['space']}, {count} estimates"
        return f"{result['bits_per_dimension']:.4f} ± {error:.4f} bits per dimension ({dimensions})"
    level = result["level"]
    place = f"t {level['t']:.6g}, α {level['alpha']:.6g}, σ {level['sigma']:.6g} in {result['space']}"
    if job.task == "noise":
        return place
    return f"‖score‖ {result['score_norm']:.6g}, ‖ε̂‖ {result['epsilon_norm']:.6g} at {place}"
