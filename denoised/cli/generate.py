"""`denoised generate`: a job followed to its end, its pictures written and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from denoised.cli.console import INTERRUPTED, lively, refuse, say, say_json, shows_pictures, stderr, stdout
from denoised.cli.halfblocks import Halfblocks
from denoised.cli.progress import Display, LiveDisplay, PlainLines, Silence
from denoised.client import Client, Ended, Job, ServiceError
from denoised.client.exchange import succeeded
from denoised.client.results import opened

FRAMES = 100  # that a watched job has at most, about


@dataclass(frozen=True)
class Wish:
    """request: the fields of `POST /generate` beside the label; out: the folder for the pictures."""

    label: str | int | None
    request: Mapping[str, Any]
    out: Path
    watch: bool
    as_json: bool

    @property
    def shown(self) -> bool:
        """Whether pictures are drawn on stdout."""
        return not self.as_json and shows_pictures(stdout())

    def body(self) -> dict[str, Any]:
        """The request, with frames where they will be watched."""
        watched = self.watch and (self.shown or self.as_json)
        frames = {"preview_every": max(1, self.request.get("steps", 0) // FRAMES)} if watched else {}
        return {**frames, **self.request}


def fulfil(client: Client, wish: Wish) -> None:
    """Ask, follow, write, show. Ctrl-C cancels the job.

    Raises:
        ServiceError, OSError: when there are no pictures, or they cannot be written.
    """
    wish.out.mkdir(parents=True, exist_ok=True)
    job = client.submit(wish.label, **wish.body())
    try:
        ended = _follow(client, job, wish)
    except KeyboardInterrupt:
        _leave(client, job)
    if wish.as_json and ended.status != "succeeded":
        say_json(ended.raw)
    files = _save(client, succeeded(ended), wish.out)
    if wish.as_json:
        images = [{**image.raw, "file": str(path)} for image, (path, _) in zip(ended.images, files, strict=True)]
        say_json({**ended.raw, "images": images})
        return
    if wish.shown:
        _show([opened(data) for _, data in files])
    for path, _ in files:
        say(str(path))


def _follow(client: Client, job: Job, wish: Wish) -> Job:
    """The job as it ended, shown until then."""
    with _display(client, job, wish) as display:
        for event in client.events(job.id):
            if wish.as_json and wish.watch:
                say_json(event.raw)
            display.show(event)
            if isinstance(event, Ended):
                return event.result
    return client.job(job.id)


def _display(client: Client, job: Job, wish: Wish) -> Display:
    """Pictures need stdout's terminal; the bar alone takes stderr's. With JSON there is a bar on a terminal only."""
    console = stdout() if wish.shown else stderr()
    if lively(console):
        return LiveDisplay(console, client, job)
    return Silence() if wish.as_json else PlainLines()


def _leave(client: Client, job: Job) -> NoReturn:
    """End the job, say so, and go."""
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
