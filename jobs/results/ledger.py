"""What lies outside Redis, in Redis: the objects of each job with their bytes, entered before they are written.

So nothing can be written that is not found again when its job expires, even if the process that writes it dies.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from denoised.jobs.errors import RecordError, StoreFull
from denoised.jobs.results.failures import WHO
from denoised.jobs.results.ledger_scripts import ENTER, LOOK_AGAIN, REMOVE, RESERVE, TAKE_DUE
from denoised.jobs.results.settings import ResultSettings
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.store_connection import StoreConnection

LOOK_SECONDS = 60.0  # until a job that is not over is looked at again
TAKEN_SECONDS = 60.0  # that a job belongs to the process that looks at it
EVERY_KIND = "all"


@dataclass(frozen=True)
class LedgerEntry:
    """An object that is to be written."""

    job: str
    file: str
    size: int


@dataclass(frozen=True)
class Entered:
    """Files by job. refused: resume points that there is no room for; removed: frames that made room."""

    refused: frozenset[tuple[str, str]]
    removed: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class DueJob:
    """A job that has objects.

    status: '' if the job is not stored any more.
    expires_in: seconds; -1 = it does not expire.
    """

    id: str
    status: str
    expires_in: int


class Ledger:
    """Every method raises StoreUnavailable when Redis does not answer in time.

    Attributes:
        is_founder: whether this process has named the folder of all objects; known after the first call of `folder`.
    """

    def __init__(self, connection: StoreConnection, settings: ResultSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._scripts = {text: connection.client.register_script(text) for text in (ENTER, RESERVE, REMOVE, TAKE_DUE)}
        self._scripts[LOOK_AGAIN] = connection.client.register_script(LOOK_AGAIN)
        self._folder: str | None = None
        self.is_founder = False

    def folder(self) -> str:
        """The folder of all objects of this Redis, so that several of them can share a place."""
        if self._folder is None:
            with self._connection.reachable():
                founded = self._connection.client.set(keys.RESULTS, uuid.uuid4().hex, nx=True)
                self.is_founder = self.is_founder or bool(founded)
                found = self._connection.client.get(keys.RESULTS)
            text = found.decode(errors="replace") if isinstance(found, bytes) else ""
            if len(text) != len(uuid.UUID(int=0).hex) or not text.isalnum():
                raise RecordError(f"{keys.RESULTS} is {text!r:.50} (allowed: 32 hexadecimal digits)")
            self._folder = text
        return self._folder

    def enter(self, entries: Iterable[LedgerEntry]) -> Entered:
        """Enter objects; entering one again changes nothing."""
        settings = self._settings
        args: list[Any] = [settings.max_frame_bytes, settings.max_resume_bytes, LOOK_SECONDS]
        args += [part for entry in entries for part in (entry.job, entry.file, entry.size)]
        refused, removed = self._call(ENTER, *args)
        return Entered(frozenset(map(_split, refused)), list(map(_split, removed)))

    def reserve(self, job: str, size: int) -> None:
        """Set bytes aside for the pictures of a new job, until it is over.

        Raises:
            StoreFull: when there would be more than are allowed.
        """
        limit = self._settings.max_picture_bytes
        fits, taken = self._call(RESERVE, job, size, limit, LOOK_SECONDS)
        if not fits:
            raise StoreFull(
                f"{WHO} has {taken} bytes of pictures, and this job may write {size} more (allowed together: {limit})"
            )

    def remove(self, job: str, kinds: str = EVERY_KIND, keep: str = "") -> list[str]:
        """Remove the objects of a job of some kinds, separated by spaces, but not the file `keep`. Returns them."""
        return [file.decode(errors="replace") for file in self._call(REMOVE, job, kinds, keep)]

    def take_due(self, count: int) -> list[DueJob]:
        """Some of the jobs that are to be looked at now; no other process gets them for `TAKEN_SECONDS`."""
        found = self._call(TAKE_DUE, count, TAKEN_SECONDS)
        return [DueJob(job.decode(errors="replace"), status.decode(), int(ttl)) for job, status, ttl in found]

    def look_again(self, job: str, seconds: float | None) -> None:
        """Look at a job again after some seconds; None = never."""
        self._call(LOOK_AGAIN, job, -1 if seconds is None else seconds)

    def bytes_by_kind(self) -> Mapping[str, int]:
        """The bytes of all objects by kind."""
        with self._connection.reachable():
            found: Any = self._connection.client.hgetall(keys.RESULT_BYTES)
        return {name.decode(): int(value) for name, value in found.items() if value.isdigit()}

    def _call(self, script: str, *args: Any) -> Any:
        with self._connection.reachable():
            return self._scripts[script](args=list(args))


def _split(member: bytes) -> tuple[str, str]:
    job, _, file = member.decode(errors="replace").partition("/")
    return job, file
