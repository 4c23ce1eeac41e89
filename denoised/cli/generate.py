"""`denoised generate`: submits a request, follows the job to its end, writes and shows the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from PIL import Image

from denoised.cli.console import INTERRUPTED, lively, refuse, say, say_json, shows_pictures, stderr, stdout
from denoised.cli.halfblocks import Halfblocks
from denoised.cli.progress import Display, LiveDisplay, PlainLines, Silence
from denoised.client import Client, Ended, Job, ServiceError
from denoised.client.exchange import succeeded
from denoised.client.results import opened
from denoised.jobs.request import RequestFields

FRAMES = 100  # the approximate maximum of a watched job


@dataclass(frozen=True)
class GenerateOptions:
    """What the user asked for. out: the folder for the pictures. watch: show frames, or print events with as_json."""

    fields: RequestFields
    out: Path
    watch: bool
    as_json: bool

    @property
    def draws_pictures(self) -> bool:
        """Whether pictures are drawn on stdout."""
        return not self.as_json and shows_pictures(stdout())

    def request(self) -> RequestFields:
        """The fields to send: those given, with frames if they will be seen."""
        if not (self.watch and (self.draws_pictures or self.as_json)):
            return self.fields
        return {"preview_every": max(1, (self.fields.get("steps") or 0) // FRAMES), **self.fields}


def fields_from(given: Mapping[str, Any]) -> RequestFields:
    """The request fields among the options that were given; a label of digits is a class index."""
    fields = {name: value for name, value in given.items() if value is not None}
    if str(fields.get("label", "")).isdecimal():
        fields["label"] = int(fields["label"])
    return cast(RequestFields, fields)


def generate_pictures(client: Client, options: GenerateOptions) -> None:
    """Submit the request, follow the job, and write and show its pictures. Ctrl-C cancels the job.

    Raises:
        ServiceError: when the job makes no pictures.
        OSError: when they cannot be written.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    job = client.submit(**options.request())
    try:
        ended = _follow(client, job, options)
    except KeyboardInterrupt:
        _cancel(client, job)
    if options.as_json and ended.status != "succeeded":
        say_json(ended.raw)
    files = _save(client, succeeded(ended), options.out)
    if options.as_json:
        images = [{**image.raw, "file": str(path)} for image, (path, _) in zip(ended.images, files, strict=True)]
        say_json({**ended.raw, "images": images})
        return
    if options.draws_pictures:
        _show([opened(data) for _, data in files])
    for path, _ in files:
        say(str(path))


def _follow(client: Client, job: Job, options: GenerateOptions) -> Job:
    """Show a job's events until it ends; the job as it ended."""
    with _display(client, job, options) as display:
        for event in client.events(job.id):
            if options.as_json and options.watch:
                say_json(event.raw)
            display.show(event)
            if isinstance(event, Ended):
                return event.result
    return client.job(job.id)


def _display(client: Client, job: Job, options: GenerateOptions) -> Display:
    """Pictures are drawn on stdout's terminal, a progress bar alone on stderr's. With JSON there are no plain lines."""
    console = stdout() if options.draws_pictures else stderr()
    if lively(console):
        return LiveDisplay(console, client, job)
    return Silence() if options.as_json else PlainLines()


def _cancel(client: Client, job: Job) -> NoReturn:
    """Cancel the job and exit with a message."""
    try:
        client.cancel(job.id)
    except ServiceError as error:
        refuse("generate", f"interrupted; {error}", INTERRUPTED)
    refuse("generate", f"interrupted; job {job.id} was canceled", INTERRUPTED)


def _save(client: Client, job: Job, out: Path) -> list[tuple[Path, bytes]]:
    saved = []
    for image in job.images:
        name = "".join(c if c.isalnum() else "-" for c in job.label or job.model)
        path, data = out / f"{name}-{image.seed}.{image.format}", client.image(image)
        path.write_bytes(data)
        saved.append((path, data))
    return saved


def _show(pictures: Sequence[Image.Image]) -> None:
    stdout().print(Halfblocks([pictures]))
