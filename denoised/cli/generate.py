"""`denoised generate`: submit a job, follow it to its end, write its images and show them."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import typer
from PIL import Image

from denoised.cli.console import INTERRUPTED, duration, print_line, shows_pictures
from denoised.cli.extension import Extension, extend
from denoised.cli.fetch import save_images, with_files
from denoised.cli.halfblocks import Halfblocks
from denoised.cli.job_series import JobSeries, read_prompts, run_series
from denoised.cli.network_options import NAMED_PICTURE, parse_control, parse_lora, picture_file
from denoised.cli.output_folder import OutputFolder
from denoised.cli.progress import Display, LiveDisplay, NoDisplay, ProgressLines
from denoised.client import Client, Job, JobFinished, ServiceError
from denoised.client.images import decode_image
from denoised.client.job import require_success
from denoised.client.model import Model
from denoised.command_line.console import (
    can_redraw,
    exit_with_error,
    print_error,
    print_json,
    print_status,
    stderr,
    stdout,
)
from denoised.jobs.request import FIELDS, MAX_SEED, RequestFields
from denoised.jobs.request_field import RequestField

INDEX = re.compile("[0-9]{1,9}")
MAX_FRAMES = 100  # approximate number of frames of a watched job


@dataclass(frozen=True)
class GenerateOptions:
    """Options of `denoised generate`.

    fields: the request fields that were given.
    out: folder for the images.
    text: the prompt, or for a model of labels the label.
    prompts: file of such texts, one per line.
    extension: how far the picture is continued beyond its edges.
    """

    fields: RequestFields
    out: Path
    watch: bool
    as_json: bool
    text: str | None = None
    prompts: Path | None = None
    extension: Extension | None = None

    @property
    def draws_images(self) -> bool:
        """Whether images are drawn on stdout."""
        return not self.as_json and shows_pictures(stdout())

    def request(self) -> RequestFields:
        """The fields to send; with `--watch` they also ask for frames."""
        if not (self.watch and (self.draws_images or self.as_json)):
            return self.fields
        return {"preview_every": max(1, (self.fields.get("steps") or 0) // MAX_FRAMES), **self.fields}


def fields_from(given: Mapping[str, Any], known: Mapping[str, RequestField] = FIELDS) -> RequestFields:
    """The request fields among the options that were given. known: those of the request."""
    fields = {name: value for name, value in given.items() if value is not None}
    for name in fields:
        if known[name].is_numbers:
            fields[name] = _numbers(name, fields[name])
        elif known[name].is_picture and not NAMED_PICTURE.match(fields[name]):
            fields[name] = picture_file(name, fields[name])
        elif not known[name].allows(fields[name]):
            message = f"{fields[name]!s:.80} was given (allowed: {known[name].limits})"
            raise typer.BadParameter(message, param_hint=known[name].flag or f"--{name.replace('_', '-')}")
    if "loras" in fields:
        fields["loras"] = [parse_lora(text) for text in fields["loras"]]
    if "controls" in fields:
        fields["controls"] = [parse_control(text) for text in fields["controls"]]
    return cast(RequestFields, fields)


def check_text(text: str | None, fields: RequestFields, prompts: Path | None = None) -> None:
    """Refuse a text, or a file of them, together with the option that says the same.

    Raises:
        typer.BadParameter: naming the option.
    """
    for name in ("prompt", "label"):
        if text is not None and name in fields:
            raise typer.BadParameter(f"give either TEXT or --{name}, not both")
        if prompts is not None and (text is not None or name in fields):
            raise typer.BadParameter(
                f"give either --prompts or {'TEXT' if text is not None else f'--{name}'}, not both"
            )


def _numbers(name: str, text: str) -> list[float]:
    """The numbers in a text with commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        message = f"{text!r:.80} is not a comma-separated list of numbers"
        raise typer.BadParameter(message, param_hint=f"--{name.replace('_', '-')}") from None


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


def _takes_all(model: Model, fields: RequestFields) -> bool:
    """Whether a model takes the prompt or the label of a request: the server chooses the first that does."""
    return all(name in model.inputs for name in ("prompt", "label") if fields.get(name) is not None)


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
    models = client.models() if _needs_models(options) else []
    requests = [_resolve(options.request(), text, models) for text in _texts(options)]
    if options.extension is not None:
        model = _named(requests[0].get("model"), [each for each in models if _takes_all(each, requests[0])])
        requests = [extend(each, options.extension, model) for each in requests]
    most = _most_images(requests[0], models)
    if options.prompts is not None or (requests[0].get("n") or 1) > most:
        _generate_series(client, options, JobSeries(options.out, requests, most), folder)
        return
    fields = requests[0]
    job = client.submit(**fields)
    for warning in job.warnings:
        print_status(f"warning: {warning.field}: {warning.message}")
    try:
        finished = _follow(client, job, options)
    except KeyboardInterrupt:
        _cancel_and_exit(client, job)
    if options.as_json and finished.status != "succeeded":
        print_json(finished.raw)
    files = save_images(client, require_success(finished), folder)
    if options.as_json:
        print_json(with_files(finished, [path for path, _ in files]))
        return
    if options.draws_images:
        _draw([decode_image(data) for _, data in files])
    for path, _ in files:
        print_line(str(path))
    _print_summary(finished, files[0][0])


def _print_summary(job: Job, first: Path) -> None:
    """On a terminal: the seed, the time, and how to check the first file, unless that is wider than the terminal.

    Only PNG files carry their request.
    """
    seeds = f"seed {job.seed}" if job.n == 1 else f"seeds {job.seed} … {job.seed + job.n - 1}"
    ran = "" if job.timing.running is None else f", {duration(job.timing.running)}"
    check = f"; to check it: denoised verify {shlex.quote(str(first))}" if first.suffix == ".png" else ""
    text = f"{seeds}{ran}{check}"
    if can_redraw(stderr()) and len(text) <= stderr().width:
        print_status(text)


def _texts(options: GenerateOptions) -> Sequence[str | None]:
    return [options.text] if options.prompts is None else read_prompts(options.prompts)


def _needs_models(options: GenerateOptions) -> bool:
    """Whether the request depends on what the models take."""
    has_index = bool(INDEX.fullmatch(str(options.fields.get("label") or "")))
    several = options.prompts is not None or (options.fields.get("n") or 1) > 1
    return options.text is not None or has_index or several or options.extension is not None


def _resolve(fields: RequestFields, text: str | None, models: Sequence[Model]) -> RequestFields:
    if text is not None:
        return resolve_text(fields, text, models)
    return resolve_label(fields, models)


def _most_images(fields: RequestFields, models: Sequence[Model]) -> int:
    """The most images of one job; without a limit if no model is known."""
    model = _named(fields.get("model"), models)
    return MAX_SEED if model is None else model.max_images


def _generate_series(client: Client, options: GenerateOptions, series: JobSeries, folder: OutputFolder) -> None:
    """Make the images of several jobs, and say after each how many are done. Jobs that fail do not end the others."""
    total, failures = len(series.parts), 0
    done = total - len(series.unsaved)
    if done:
        print_status(f"{done} of {total} jobs are in {options.out} already")
    with contextlib.closing(run_series(client, series)) as outcomes:
        for part, outcome in outcomes:
            done += 1
            if isinstance(outcome, ServiceError):
                print_error("generate", f"{part.title}: {outcome}")
                failures += 1
                continue
            paths = [path for path, _ in save_images(client, outcome, folder)]
            series.record(part, outcome, paths)
            print_status(f"{done} of {total}: {part.title}")
            if options.as_json:
                print_json(with_files(outcome, paths))
            else:
                for path in paths:
                    print_line(str(path))
    if failures:
        exit_with_error("generate", f"{failures} of {total} jobs made no images; repeat the command to try them again")


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
    return NoDisplay() if options.as_json else ProgressLines()


def _cancel_and_exit(client: Client, job: Job) -> NoReturn:
    try:
        client.cancel(job.id)
    except ServiceError as error:
        exit_with_error("generate", f"interrupted; {error}", INTERRUPTED)
    exit_with_error("generate", f"interrupted; job {job.id} was canceled", INTERRUPTED)


def _draw(images: Sequence[Image.Image]) -> None:
    stdout().print(Halfblocks([images]))
