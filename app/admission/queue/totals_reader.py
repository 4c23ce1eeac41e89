"""Reads the totals of all waiting lists: their lengths and ends, and those of their jobs that are new."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import redis

from denoised.app.admission.queue.list_totals import ListTotals, Totals
from denoised.app.admission.queue.queue_totals import CallerTotals
from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import PRIORITIES
from denoised.jobs.store.store import Store
from denoised.jobs.store.waiting_lists import queue_name

MAX_LISTS = 10_000  # of callers and models, that are remembered

Records = Callable[[Sequence[str]], Mapping[str, JobRecord | None]]


@dataclass(frozen=True)
class ListEnds:
    """A waiting list. key: in Redis; first, last: job ids."""

    key: str
    length: int
    first: str
    last: str


class TotalsReader:
    """Thread-safe. No lock is held while Redis is asked.

    key_prefix: of RQ's queues.
    records: reads records by id.
    """

    def __init__(self, client: redis.Redis, store: Store, key_prefix: str, records: Records) -> None:
        self._client, self._store = client, store
        self._prefix, self._records = key_prefix, records
        self._lists: OrderedDict[str, ListTotals] = OrderedDict()
        self._lock = threading.Lock()

    def callers(self, model: str, reply: Sequence[Sequence[bytes]]) -> list[CallerTotals]:
        """The totals of each caller. reply: of `READ_ENDS`.

        Raises:
            StoreUnavailable: when Redis does not answer in time.
        """
        return [self._caller(model, owner.decode(errors="replace"), parts) for owner, *parts in reply]

    def _caller(self, model: str, owner: str, parts: Sequence[bytes]) -> CallerTotals:
        totals, weight = [], 1.0
        for priority, length, first, last in zip(PRIORITIES, parts[::3], parts[1::3], parts[2::3], strict=True):
            key = self._prefix + queue_name(model, owner, priority)
            ends = ListEnds(key, int(length), first.decode(errors="replace"), last.decode(errors="replace"))
            if not ends.length:
                totals.append(Totals())
                continue
            known = self._list(key)
            totals.append(self._totals(known, ends))
            weight = known.weight
        return CallerTotals(owner, weight, tuple(totals))

    def _totals(self, known: ListTotals, ends: ListEnds) -> Totals:
        with self._lock:
            found, read = known.between(ends.length, ends.first, ends.last), known.known_from(ends.first)
        if found is None and read:
            self._read(known, ends.key, read - 1)
            with self._lock:
                found = known.between(ends.length, ends.first, ends.last)
        if found is not None:
            return found
        ids = self._read(known, ends.key, 0)
        with self._lock:
            return (known.between(len(ids), ids[0], ids[-1]) if ids else None) or Totals()

    def _read(self, known: ListTotals, key: str, start: int) -> list[str]:
        """Read a list from a place on. start: 0 replaces what is known."""
        with self._store.reachable():
            reply = cast("list[bytes]", self._client.lrange(key, start, -1))
        ids = [job_id.decode(errors="replace") for job_id in reply]
        with self._lock:
            unknown = known.unknown(ids)
        records = self._records(unknown) if unknown else {}
        with self._lock:
            if start:
                known.extend(ids, records)
            else:
                known.replace(ids, records)
        return ids

    def _list(self, key: str) -> ListTotals:
        with self._lock:
            found = self._lists.setdefault(key, ListTotals())
            self._lists.move_to_end(key)
            while len(self._lists) > MAX_LISTS:
                self._lists.popitem(last=False)
            return found
