"""`denoised generate`: submit a job, follow it to its end, write its images and show them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import typer
from PIL import Image

from denoised.cli.console import INTERRUPTED, print_line, shows_pictures
from denoised.cli.halfblocks import Halfblocks
from denoised.cli.output_folder import OutputFolder
from denoised.cli.progress import Display, LiveDisplay, NoDisplay, PlainLines
from denoised.client import Client, Job, JobFinished, ServiceError
from denoised.client.images import decode_image
from denoised.client.job import require_success
from denoised.client.model import Model
from denoised.command_line.console import can_redraw, exit_with_error, print_json, print_status, stderr, stdout
from denoised.jobs.lora import LoraFields
from denoised.jobs.request import FIELDS, RequestFields

INDEX = re.compile("[0-9]{1,9}")
WEIGHT = re.compile(r"-?[0-9]{0,9}\.?[0-9]{1,9}")
MAX_FRAMES = 100  # approximate number of frames of a watched job


@dataclass(frozen=True)
class GenerateOptions:
    """Options of `denoised generate`.

    fields: the request fields that were given.
    out: folder for the images.
    text: the prompt, or for a model of labels the label.
    """

    fields: RequestFields
    out: Path
    watch: bool
    as_json: bool
    text: str | None = None

    @property
    def draws_images(self) -> bool:
        """Whether images are drawn on stdout."""
        return not self.as_json and shows_pictures(stdout())

    def request(self) -> RequestFields:
        """The fields to send; with `--watch` they also ask for frames."""
        if not (self.watch and (self.draws_images or self.as_json)):
            return self.fields
        return {"preview_every": max(1, (self.fields.get("steps") or 0) // MAX_FRAMES), **self.fields}


def fields_from(given: Mapping[str, Any]) -> RequestFields:
    """The request fields among the options that were given."""
    fields = {name: value for name, value in given.items() if value is not None}
    for name in fields:
        if FIELDS[name].is_numbers:
            fields[name] = _numbers(name, fields[name])
        elif not FIELDS[name].allows(fields[name]):
            message = f"{fields[name]!s:.80} was given (allowed: {FIELDS[name].limits})"
            raise typer.BadParameter(message, param_hint=FIELDS[name].flag or f"--{name.replace('_', '-')}")
    if "loras" in fields:
        fields["loras"] = [parse_lora(text) for text in fields["loras"]]
    return cast(RequestFields, fields)


def check_text(text: str | None, fields: RequestFields) -> None:
    """Refuse a text together with the option that says the same.

    Raises:
        typer.BadParameter: naming the option.
    """
    for name in ("prompt", "label"):
        if text is not None and name in fields:
            raise typer.BadParameter(f"give either TEXT or --{name}, not both")


def _numbers(name: str, text: str) -> list[float]:
    """The numbers in a text with commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        message = f"{text!r:.80} is not a comma-separated list of numbers"
        raise typer.BadParameter(message, param_hint=f"--{name.replace('_', '-')}") from None


def parse_lora(text: str) -> LoraFields:
    """The adapter in `NAME` or `NAME:WEIGHT`; what follows a colon is part of the name unless it is a number."""
    name, colon, weight = text.rpartition(":")
    return {"name": name, "weight": float(weight)} if colon and WEIGHT.fullmatch(weight) else {"name": text}


def resolve_text(fields: RequestFields, text: str, models: Sequence[Model]) -> RequestFields:
    """Add a text as the prompt of a model that takes one, else as the label.

    models: those that are served, in the server's order.
    """
    model = _named(fields.get("model"), models)
    if model is not None and "prompt" in model.inputs:
        return {**fields, "prompt": text}
    return resolve_label({**fields, "label": text}, models)


def _named(name: str | None, models: Sequence[Model]) -> Model | None:
    return next((each for each in models if name in (None, each.name)), None)


def resolve_label(fields: RequestFields, models: Sequence[Model]) -> RequestFields:
    """Turn a label of digits into a class index, unless the model has a class of that name.

    models: those that are served, in the server's order; without a name, it chooses the first that takes labels.
    """
    label = str(fields.get("label") or "")
    model = _named(fields.get("model"), [each for each in models if each.labels])
    if not INDEX.fullmatch(label) or (model is not None and label in model.labels):
        return fields
    return {**fields, "label": int(label)}


def generate_to_folder(client: Client, options: GenerateOptions) -> None:
    """Submit a job, follow it, write its images and show them. Ctrl-C cancels the job.

    Raises:
        ServiceError: if the job ends without images.
        OSError: if they cannot be written.
    """
    folder = OutputFolder(options.out)
    fields = options.request()
    if options.text is not None:
        fields = resolve_text(fields, options.text, client.models())
    elif INDEX.fullmatch(str(fields.get("label") or "")):
        fields = resolve_label(fields, client.models())
    job = client.submit(**fields)
    for warning in job.warnings:
        print_status(f"warning: {warning.field}: {warning.message}")
    try:
        finished = _follow(client, job, options)
    except KeyboardInterrupt:
        _cancel_and_exit(client, job)
    if options.as_json and finished.status != "succeeded":
        print_json(finished.raw)
    files = _save(client, require_success(finished), folder)
    if options.as_json:
        images = [{**image.raw, "file": str(path)} for image, (path, _) in zip(finished.images, files, strict=True)]
        print_json({**finished.raw, "images": images})
        return
    if options.draws_images:
        _draw([decode_image(data) for _, data in files])
    for path, _ in files:
        print_line(str(path))


def _follow(client: Client, job: Job, options: GenerateOptions) -> Job:
    """Show a job's progress until it finishes; returns the finished job."""
    with _display(client, job, options) as display:
        for event in client.events(job.id):
            if options.as_json and options.watch:
                print_json(event.raw)
            display.show(event)
            if isinstance(event, JobFinished):
                return event.result
    return client.job(job.id)


def _display(client: Client, job: Job, options: GenerateOptions) -> Display:
    """Images need a terminal on stdout, the progress bar alone one on stderr. With JSON, only a terminal gets a bar."""
    console = stdout() if options.draws_images else stderr()
    if can_redraw(console):
        return LiveDisplay(console, client, job)
    return NoDisplay() if options.as_json else PlainLines()


def _cancel_and_exit(client: Client, job: Job) -> NoReturn:
    try:
        client.cancel(job.id)
    except ServiceError as error:
        exit_with_error("generate", f"interrupted; {error}", INTERRUPTED)
    exit_with_error("generate", f"interrupted; job {job.id} was canceled", INTERRUPTED)


def _save(client: Client, job: Job, folder: OutputFolder) -> list[tuple[Path, bytes]]:
    saved = []
    for image in job.images:
        data = client.image(image)
        saved.append((folder.save(job.title, image.seed, image.format, data), data))
    return saved


def _draw(images: Sequence[Image.Image]) -> None:
    stdout().print(Halfblocks([images]))
