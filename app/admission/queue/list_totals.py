"""Running totals of one waiting list, so that its jobs are not read again for every request.

Jobs leave a list at its front and join at its end. Where the first and the last job of the list are as far apart as
before, the totals of what lies between follow from sums that are kept; otherwise the list is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from denoised.jobs.record import JobRecord

DROPPED_AT = 5000  # jobs that have left; then they are forgotten


@dataclass(frozen=True)
class Totals:
    """Of some waiting jobs. reserved_bytes: of Redis' memory."""

    jobs: int = 0
    evaluations: int = 0
    reserved_bytes: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.jobs + other.jobs,
            self.evaluations + other.evaluations,
            self.reserved_bytes + other.reserved_bytes,
        )


class ListTotals:
    """The jobs of one list as they were read, those that have left since included.

    Attributes:
        weight: Of the caller's key, from the newest job.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        self._sums = [Totals()]  # of all jobs before each place
        self.weight = 1.0

    def between(self, length: int, first: str, last: str) -> Totals | None:
        """The totals of a list with these ends; None if they are not those of a part of what was read."""
        start, end = self._places.get(first), self._places.get(last)
        if start is None or end is None or end - start + 1 != length:
            return None
        before, after = self._sums[start], self._sums[end + 1]
        if start > max(DROPPED_AT, length):
            self.replace(self._ids[start:], {})  # forgets those that have left
        return Totals(length, after.evaluations - before.evaluations, after.reserved_bytes - before.reserved_bytes)

    def known_from(self, first: str) -> int:
        """The number of jobs that were read from a job on; 0 if it was not."""
        start = self._places.get(first)
        return 0 if start is None else len(self._ids) - start

    def unknown(self, ids: Iterable[str]) -> list[str]:
        """Those of the jobs that were not read."""
        return [job_id for job_id in ids if job_id not in self._places]

    def extend(self, ids: Sequence[str], records: Mapping[str, JobRecord | None]) -> bool:
        """Add the jobs at the end of the list. False, and nothing is added, if they do not continue what was read.

        ids: the end of the list, from a job on that was read.
        records: of the unknown jobs; those that cannot be read count as a job without work.
        """
        start = self._places.get(ids[0]) if ids else None
        if start is None:
            return False
        known = self._ids[start:]
        if any(mine != theirs for mine, theirs in zip(known, ids, strict=False)):
            return False
        for job_id in ids[len(known) :]:
            self._append(job_id, records.get(job_id))
        return True

    def replace(self, ids: Sequence[str], records: Mapping[str, JobRecord | None]) -> None:
        """Take the whole list as it was read. records: of the unknown jobs."""
        known = dict(zip(self._ids, pairwise(self._sums), strict=True))
        self._ids, self._places, self._sums = [], {}, [Totals()]
        for job_id in ids:
            if job_id in known:
                before, after = known[job_id]
                self._add(job_id, after.evaluations - before.evaluations, after.reserved_bytes - before.reserved_bytes)
            else:
                self._append(job_id, records.get(job_id))

    def _append(self, job_id: str, record: JobRecord | None) -> None:
        if record is None:
            self._add(job_id, 0, 0)
            return
        self.weight = record.weight
        self._add(job_id, record.request.evaluations, record.reserved_bytes)

    def _add(self, job_id: str, evaluations: int, reserved_bytes: int) -> None:
        self._places[job_id] = len(self._ids)
        self._ids.append(job_id)
        self._sums.append(self._sums[-1] + Totals(1, evaluations, reserved_bytes))
