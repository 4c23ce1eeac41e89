"""The large values of jobs: in Redis, or, with a place for results, as objects there that Redis refers to.

Every value has the same key in Redis in both cases; with a place for results, that key holds a reference
(`jobs.results.reference`), and a `frame` event says where its picture is. So scripts, expiry and access are the same,
and a value that was written before a place was set is still read.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Sequence
from typing import Any

from denoised.jobs.errors import RecordError, StoreRefused, StoreUnavailable, StoreUnfit
from denoised.jobs.record import TERMINAL
from denoised.jobs.results.failures import WHO
from denoised.jobs.results.ledger import EVERY_KIND, LOOK_SECONDS, DueJob, Ledger
from denoised.jobs.results.object_cache import ObjectCache
from denoised.jobs.results.reference import FramePlace, Reference
from denoised.jobs.results.result_store import ResultStore
from denoised.jobs.results.update_objects import MAX_OBJECT_BYTES, UpdateObjects
from denoised.jobs.store.redis_keys import RESULTS
from denoised.jobs.store.update import JobUpdate, UpdateResult

log = logging.getLogger("denoised.jobs")

MARK = "place/mark"  # no job has the id `place`
MARK_SECONDS = 1.0  # until the first program has left its mark
AT_THE_END = "resume reserved"  # kinds that are removed when a job is over


class Results:
    """Thread-safe.

    Every method that reads or writes objects raises StoreUnavailable when Redis or the place for results does not
    answer, refuses, or is full.
    """

    def __init__(self, ledger: Ledger, store: ResultStore | None) -> None:
        """store: None = large values are in Redis."""
        self.ledger = ledger
        self.store = store
        self._cache = ObjectCache()

    # Writing

    def move_out(self, updates: Sequence[JobUpdate]) -> list[JobUpdate]:
        """Write the large values of updates as objects. Returns the updates with references in their place.

        A resume point that there is no room for is left out of its update. An update that was moved before, and not
        changed since, is not written again.
        """
        if self.store is None:
            return list(updates)
        new = [update for update in updates if update.moved is None]
        planned = {id(update): UpdateObjects(update, self.ledger.folder()) for update in new if update.has_values}
        if planned:
            self._write(list(planned.values()))
        for update in new:
            objects = planned.get(id(update))
            update.moved = objects.referring() if objects is not None else update
        return [update.moved or update for update in updates]

    def _write(self, planned: Sequence[UpdateObjects]) -> None:
        assert self.store is not None
        entered = self.ledger.enter(entry for objects in planned for entry in objects.entries())
        for objects in planned:
            objects.drop(entered.refused)
        self.store.write({name: data for objects in planned for name, data in objects.by_name.items()})
        self.store.delete([self._name(job, file) for job, file in entered.removed])

    def written(self, updates: Sequence[JobUpdate], results: Sequence[UpdateResult]) -> None:
        """Delete what applied updates have replaced: earlier resume points, and all of them at a job's end."""
        if self.store is None:
            return
        for update, result in zip(updates, results, strict=True):
            if not result:
                continue
            if update.status in TERMINAL:
                self._remove_at_end(update.job)
            elif update.resume is not None and (reference := Reference.parse(update.resume, update.job)):
                self._remove(update.job, "resume", keep=reference.name.rpartition("/")[2])

    def _remove_at_end(self, job: str) -> None:
        try:
            self._remove(job, AT_THE_END)
        except StoreUnavailable as error:  # the job is over; the sweeper tries again
            log.warning("objects not deleted yet", extra={"job": job, "reason": str(error)})

    def _remove(self, job: str, kinds: str, keep: str = "") -> None:
        assert self.store is not None
        files = self.ledger.remove(job, kinds, keep)
        self.store.delete([self._name(job, file) for file in files])

    def reserve(self, job: str, size: int) -> None:
        """Set bytes aside for the pictures of a new job, until it is over; nothing if they are in Redis.

        Raises:
            StoreFull: when there would be more than are allowed.
        """
        if self.store is not None:
            self.ledger.reserve(job, size)

    # Reading

    def value(self, job: str, reply: bytes | None, limit: int) -> bytes | None:
        """A value as Redis has it, or the object that it refers to; None if that is missing or larger than `limit`.

        Raises:
            StoreRefused: if it refers to an object, and this process has no place for results.
        """
        try:
            reference = Reference.parse(reply, job) if reply is not None else None
        except RecordError as error:
            log.warning("reference refused", extra={"job": job, "reason": str(error)})
            return None
        if reference is None:
            return reply
        data = self._require_store().read(reference.name) if reference.size <= limit else None
        return data if data is not None and len(data) == reference.size else None

    def link(self, job: str, reply: bytes | None, seconds: int, media_type: str, filename: str) -> str | None:
        """A URL of the object that a value refers to; None if it refers to none, or the place has no URLs."""
        try:
            reference = Reference.parse(reply, job) if reply is not None else None
        except RecordError:
            return None
        if reference is None or self.store is None:
            return None
        return self.store.link(reference.name, seconds, media_type, filename)

    def with_frame(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """An event with its picture in it; None for a `frame` whose picture is deleted, or cannot be read now.

        Frames may be skipped, so that a place for results that does not answer delays no other event.
        """
        if event["type"] != "frame" or "data" in event:
            return event
        place = FramePlace.of(event)
        try:
            data = self._frame(place) if place is not None else None
        except StoreUnavailable as error:
            log.warning("frame skipped", extra={"job": event.get("job"), "reason": str(error)})
            return None
        if data is None:
            return None
        kept = {name: value for name, value in event.items() if name not in ("object", "size", "start", "end")}
        return {**kept, "data": base64.b64encode(data).decode()}

    def _frame(self, place: FramePlace) -> bytes | None:
        store = self._require_store()
        if place.size > MAX_OBJECT_BYTES:
            return store.read(place.name, place.start, place.end)
        whole = self._cache.get(place.name)
        if whole is None:
            whole = store.read(place.name)
            if whole is None:
                return None
            self._cache.add(place.name, whole)
        return whole[place.start : place.end] or None

    # Deleting

    def delete_due(self, count: int) -> int:
        """Look at some jobs that have objects: delete those of jobs that are no longer stored, and of ended jobs what
        nobody needs. Returns how many jobs were looked at."""
        store = self._require_store()
        due = self.ledger.take_due(count)
        for job in due:
            if not job.status:
                store.delete_folder(f"{self.ledger.folder()}/{job.id}")
                self.ledger.remove(job.id, EVERY_KIND)
            elif job.status in TERMINAL:
                self._remove(job.id, AT_THE_END)
            self.ledger.look_again(job.id, _look_after(job))
        return len(due)

    def join(self) -> None:
        """Check that objects can be written, read and deleted in the place that all programs of this Redis use.

        The first of them leaves a mark there, in the folder that Redis names, and the others find it.

        Raises:
            StoreUnavailable: if they cannot.
            StoreUnfit: if it is another place.
        """
        store = self._require_store()
        store.check()
        mark = f"{self.ledger.folder()}/{MARK}"
        if self.ledger.is_founder:
            store.write({mark: b"denoised"})
        end = time.monotonic() + MARK_SECONDS
        while store.read(mark) is None:
            if time.monotonic() > end:
                raise StoreUnfit(
                    f"{WHO} is another one than that of the other programs on this Redis, or it was emptied (if they "
                    f"have the same: redis-cli DEL {RESULTS})"
                )
            time.sleep(MARK_SECONDS / 10)

    def _require_store(self) -> ResultStore:
        if self.store is None:
            raise StoreRefused(f"{WHO} is not set here, but results lie there: set DENOISED_RESULTS_URL as elsewhere")
        return self.store

    def _name(self, job: str, file: str) -> str:
        return f"{self.ledger.folder()}/{job}/{file}"


def _look_after(job: DueJob) -> float | None:
    """Seconds until a job is looked at again; None = never."""
    if not job.status:
        return None
    return job.expires_in + 1.0 if job.expires_in >= 0 else LOOK_SECONDS
