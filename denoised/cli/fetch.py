"""`denoised fetch`: the images of finished jobs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from denoised.cli.console import OK, exit_code, print_line
from denoised.cli.output_folder import OutputFolder
from denoised.client import Client, Job, ServiceError
from denoised.client.job import require_success
from denoised.command_line.console import FAILED, print_error, print_json


def fetch_jobs(client: Client, job_ids: Iterable[str], out: Path, as_json: bool) -> int:
    """Write the images of jobs, and print their paths. Returns the exit code: that of the last error.

    Raises:
        OSError: if they cannot be written.
    """
    folder, code = OutputFolder(out), OK
    for job_id in job_ids:
        try:
            job = client.job(job_id)
            if not job.is_finished:
                print_error("fetch", f"job {job.id} is {job.status}: step {job.step} of {job.run_steps}")
                code = FAILED
                continue
            files = save_images(client, require_success(job), folder)
        except ServiceError as error:
            print_error("fetch", error)
            code = exit_code(error)
            continue
        _print_files(job, [path for path, _ in files], as_json)
    return code


def save_images(client: Client, job: Job, folder: OutputFolder) -> list[tuple[Path, bytes]]:
    """Write the images of a finished job; each with its path."""
    saved = []
    for image in job.images:
        data = client.image(image)
        saved.append((folder.save(job.title, image.seed, image.format, data), data))
    return saved


def with_files(job: Job, paths: Iterable[Path]) -> dict[str, object]:
    """A job as JSON, with the `file` of each image."""
    images = [{**image.raw, "file": str(path)} for image, path in zip(job.images, paths, strict=True)]
    return {**job.raw, "images": images}


def _print_files(job: Job, paths: list[Path], as_json: bool) -> None:
    if as_json:
        print_json(with_files(job, paths))
        return
    for path in paths:
        print_line(str(path))
