"""Several jobs of one command: a file of prompts, or more images than one job may hold.

A record in the output folder says which images are there, so that the same command continues where it was interrupted.
A job that was submitted and not saved is found again by its Idempotency-Key, which is derived from the record's own id.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import uuid
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from denoised.cli.console import truncate
from denoised.client import Client, Job, JobCanceled, JobFailed, RequestRejected, ServiceError
from denoised.client.job import require_success
from denoised.command_line.console import print_error
from denoised.jobs.request import MAX_SEED, RequestFields

RECORD = "denoised-jobs.jsonl"
DRAWN_SEEDS = 2**32
REFUSED_CALLER = (401, 403)  # HTTP statuses
IN_FLIGHT = 4  # jobs that are submitted at once, so that a worker always has one more


@dataclass(frozen=True)
class Part:
    """One job of a series.

    Attributes:
        fields: Of its request, a seed included.
        digest: Of the fields and of its place in the series: two equal lines are two jobs.
    """

    fields: RequestFields
    digest: str

    @property
    def title(self) -> str:
        """What it shows, shortened."""
        return truncate(str(self.fields.get("prompt") or self.fields.get("label") or "images"))


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file: its lines, without those that are blank.

    Raises:
        OSError: when it cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(f"--prompts {path} is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise OSError(f"--prompts {path} cannot be read ({error.strerror})") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise OSError(f"--prompts {path} has no prompts: write one per line")
    return prompts


class JobSeries:
    """The jobs of a command, and which of them are saved.

    Raises:
        OSError: when the record cannot be read or written.
    """

    def __init__(self, folder: Path, requests: Sequence[RequestFields], most_images: int) -> None:
        """requests: one for each prompt. most_images: of one job."""
        self._folder, self._path = folder, folder / RECORD
        self._id, self._seeds, self._saved = self._read()
        self.parts = [part for place, fields in enumerate(requests) for part in self._split(place, fields, most_images)]

    @property
    def unsaved(self) -> list[Part]:
        """The jobs whose images are not in the folder."""
        return [part for part in self.parts if not self._is_saved(part)]

    def key(self, part: Part) -> str:
        """The Idempotency-Key of a job."""
        return hashlib.sha256(f"{self._id} {part.digest}".encode()).hexdigest()[:32]

    def record(self, part: Part, job: Job, files: Sequence[Path]) -> None:
        """Note that a job's images are saved."""
        self._saved[part.digest] = [path.name for path in files]
        self._write({"digest": part.digest, "job": job.id, "files": self._saved[part.digest]})

    def _split(self, place: int, fields: RequestFields, most: int) -> Iterator[Part]:
        """The jobs of a request: as many as its images need, with the seeds that one job would have."""
        count, seed = fields.get("n") or 1, fields.get("seed")
        base = _digest({"place": place, **fields})
        if seed is None:
            seed = self._drawn_seed(base, count)
        for first in range(0, count, most):
            part = {**fields, "n": min(most, count - first), "seed": seed + first}
            yield Part(cast(RequestFields, part), _digest({"place": place, **part}))

    def _drawn_seed(self, digest: str, count: int) -> int:
        """The seed of a request that names none; the same when the command is repeated."""
        if digest not in self._seeds:
            self._seeds[digest] = secrets.randbelow(min(DRAWN_SEEDS, MAX_SEED - count))
            self._write({"request": digest, "seed": self._seeds[digest]})
        return self._seeds[digest]

    def _is_saved(self, part: Part) -> bool:
        files = self._saved.get(part.digest)
        return bool(files) and all((self._folder / name).is_file() for name in files or ())

    def _read(self) -> tuple[str, dict[str, int], dict[str, list[str]]]:
        """The id of the record, the drawn seeds, and the files of each job that is saved."""
        seeds, saved, name = dict[str, int](), dict[str, list[str]](), ""
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []:
            entry = _entry(line)
            name = str(entry.get("id", name))
            if isinstance(entry.get("seed"), int):
                seeds[str(entry.get("request"))] = entry["seed"]
            if isinstance(entry.get("files"), list):
                saved[str(entry.get("digest"))] = [str(path) for path in entry["files"]]
        if not name:
            name = uuid.uuid4().hex
            self._write({"id": name})
        return name, seeds, saved

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry)}\n")


def run_series(client: Client, series: JobSeries) -> Generator[tuple[Part, Job | ServiceError]]:
    """Submit the jobs that are not saved, a few at a time, and yield each with its finished job or its error, in order.

    When the caller stops, the jobs in flight are canceled.

    Raises:
        ServiceError: when no server answers, or it is busy for long.
    """
    waiting, submitted = deque(series.unsaved), deque[tuple[Part, Job | ServiceError]]()
    try:
        while waiting or submitted:
            while waiting and len(submitted) < IN_FLIGHT:
                submitted.append(_submit(client, series, waiting.popleft()))
            part, job = submitted[0]
            outcome = job if isinstance(job, ServiceError) else _finished(client, job)
            submitted.popleft()
            yield part, outcome
    finally:
        for _, job in submitted:
            if isinstance(job, Job):
                _cancel(client, job)


def _submit(client: Client, series: JobSeries, part: Part) -> tuple[Part, Job | ServiceError]:
    try:
        job = client.submit(**part.fields, idempotency_key=series.key(part))
        if job.status in ("failed", "canceled"):  # by an earlier run of the command
            job = client.submit(**part.fields)
        return part, job
    except RequestRejected as error:
        if error.status in REFUSED_CALLER:
            raise
        return part, error


def _finished(client: Client, job: Job) -> Job | ServiceError:
    try:
        return require_success(client.wait(job.id))
    except (JobFailed, JobCanceled) as error:
        return error


def _cancel(client: Client, job: Job) -> None:
    try:
        client.cancel(job.id)
    except ServiceError as error:
        print_error("generate", error)


def _digest(fields: Mapping[str, Any]) -> str:
    """Of a request; the bytes of pictures count by their own digest."""
    plain = {
        name: hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value for name, value in fields.items()
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _entry(line: str) -> dict[str, Any]:
    """A line of the record; {} for one that was cut off."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
