"""The live workers, the models they serve, and the totals of all workers so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from denoised.jobs import redis_keys as keys
from denoised.jobs.errors import RecordError
from denoised.jobs.format import UnreadableLog
from denoised.jobs.scripts import ADD_COUNTERS
from denoised.jobs.store_connection import StoreConnection
from denoised.jobs.worker_report import WorkerReport

COUNTED_SECONDS = 86_400  # longer than a worker may be cut off and come back


class WorkerRegistry:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._add_counters = connection.client.register_script(ADD_COUNTERS)
        self._unreadable = UnreadableLog()

    def report(self, report: WorkerReport, ttl: float) -> None:
        """Publish that a worker is alive and what it serves, for `ttl` seconds."""
        with self._connection.reachable(), self._connection.client.pipeline() as pipe:
            pipe.sadd(keys.WORKERS, report.name)
            pipe.sadd(keys.MODELS, *(card["name"] for card in report.models))
            pipe.set(keys.worker(report.name), report.to_json(), px=int(ttl * 1000))
            pipe.execute()

    def remove(self, name: str) -> None:
        """Remove a worker that leaves."""
        with self._connection.reachable(), self._connection.client.pipeline() as pipe:
            pipe.srem(keys.WORKERS, name)
            pipe.delete(keys.worker(name))
            pipe.execute()

    def live(self) -> list[WorkerReport]:
        """Reports of the live workers by name; drops the names of the others. An unreadable report is skipped."""
        client = self._connection.client
        with self._connection.reachable():
            names = sorted(name.decode() for name in cast("set[bytes]", client.smembers(keys.WORKERS)))
        with self._connection.reachable():
            reports = dict(zip(names, client.mget([keys.worker(name) for name in names]), strict=True) if names else ())
        dead = [name for name, report in reports.items() if report is None]
        if dead:
            with self._connection.reachable():
                client.srem(keys.WORKERS, *dead)
        read = [self._read(name, report) for name, report in reports.items() if report is not None]
        return [report for report in read if report is not None]

    def _read(self, name: str, text: str | bytes) -> WorkerReport | None:
        try:
            return WorkerReport.from_json(text)
        except RecordError as error:
            self._unreadable.skip("worker", name, error)
            return None

    def known_models(self) -> list[str]:
        """Names of all models ever served here."""
        with self._connection.reachable():
            names = cast("set[bytes]", self._connection.client.smembers(keys.MODELS))
        return sorted(name.decode() for name in names)

    def add_counters(self, worker: str, counters: Mapping[str, float]) -> None:
        """Add a worker's `Counters` to the totals, as far as they have not been added before."""
        values = [str(part) for item in counters.items() for part in item]
        with self._connection.reachable():
            self._add_counters(keys=[keys.ENGINE_TOTALS, keys.counted(worker)], args=[COUNTED_SECONDS, *values])

    def totals(self) -> tuple[dict[str, float], dict[tuple[str, str], int]]:
        """The `Counters` of all workers together, and the number of jobs by (status, model)."""
        with self._connection.reachable(), self._connection.client.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.ENGINE_TOTALS)
            pipe.hgetall(keys.JOB_TOTALS)
            engine, jobs = (self._numbers(key, reply) for key, reply in zip(_TOTALS, pipe.execute(), strict=True))
        split = [(name.partition(":"), int(count)) for name, count in jobs.items()]
        return engine, {(status, model): count for (status, _, model), count in split}

    def _numbers(self, key: str, reply: Mapping[bytes, bytes]) -> dict[str, float]:
        """The fields of a hash that are finite numbers."""
        found = {}
        for name, value in reply.items():
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if math.isfinite(number):
                found[name.decode()] = number
            else:
                self._unreadable.skip("total", f"{key} {name.decode()}", RecordError(f"{value!r} is no number"))
        return found


_TOTALS = (keys.ENGINE_TOTALS, keys.JOB_TOTALS)
