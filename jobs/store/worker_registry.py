"""The live workers, the models they serve, and the totals of all workers so far."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import cast

import redis

from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.format import UnreadableLog
from denoised.jobs.redis.refusals import store_error
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.models.kept_models import KeptModels
from denoised.jobs.store.models.model_list import ModelList
from denoised.jobs.store.scripts.worker_scripts import ADD_COUNTERS, REPORT
from denoised.jobs.store.store_connection import StoreConnection
from denoised.jobs.worker_report import MAX_REPORT_BYTES, WorkerReport

COUNTED_SECONDS = 86_400  # longer than a worker may be cut off and come back


class WorkerRegistry:
    """Every method raises StoreUnavailable when Redis does not answer in time.

    Attributes:
        kept: What remains of models that no worker serves.
        orders: What operators have ordered about models.
    """

    def __init__(self, connection: StoreConnection) -> None:
        self.kept = KeptModels(connection)
        self.orders = ModelList(connection)
        self._connection = connection
        self._add_counters = connection.client.register_script(ADD_COUNTERS)
        self._report = connection.client.register_script(REPORT)
        self._unreadable = UnreadableLog()

    def report(self, report: WorkerReport, ttl: float) -> None:
        """Publish that a worker is alive and what it serves, for `ttl` seconds."""
        names = [keys.worker(report.name), keys.WORKERS, keys.MODELS]
        models = [card["name"] for card in report.models]
        with self._connection.reachable():
            self._report(keys=names, args=[report.name, report.to_json(), int(ttl * 1000), *models])

    def remove(self, name: str) -> None:
        """Remove a worker that leaves."""
        with self._connection.reachable(), self._connection.client.pipeline() as pipe:
            pipe.srem(keys.WORKERS, name)
            pipe.delete(keys.worker(name))
            pipe.execute()

    def live(self) -> list[WorkerReport]:
        """Reports of the live workers by name; drops the names of the others. An unreadable report is skipped."""
        names = self._members(keys.WORKERS)
        with self._connection.reachable(), self._connection.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.getrange(keys.worker(name), 0, MAX_REPORT_BYTES)
            reports = dict(zip(names, pipe.execute(raise_on_error=False), strict=True)) if names else {}
        dead = [name for name, report in reports.items() if report == b""]
        if dead:
            with contextlib.suppress(StoreUnavailable), self._connection.reachable():  # it may refuse writes now
                self._connection.client.srem(keys.WORKERS, *dead)
        read = [self._read(name, report) for name, report in reports.items() if report != b""]
        return [report for report in read if report is not None]

    def _members(self, key: str) -> list[str]:
        """The names in a set; none if the key is damaged."""
        try:
            with self._connection.reachable():
                names = cast("set[bytes]", self._connection.client.smembers(key))
        except RecordError as error:
            self._unreadable.skip("key", key, error)
            return []
        return sorted(name.decode(errors="replace") for name in names)

    def _read(self, name: str, reply: bytes | redis.exceptions.RedisError) -> WorkerReport | None:
        try:
            if isinstance(reply, redis.exceptions.RedisError):
                raise store_error(reply)
            return WorkerReport.from_json(reply)
        except RecordError as error:
            self._unreadable.skip("worker", name, error)
            return None

    def known_models(self) -> list[str]:
        """Names of all models ever served here."""
        return self._members(keys.MODELS)

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
            replies = pipe.execute(raise_on_error=False)
        engine, jobs = (self._numbers(key, reply) for key, reply in zip(_TOTALS, replies, strict=True))
        split = [(name.partition(":"), int(count)) for name, count in jobs.items()]
        return engine, {(status, model): count for (status, _, model), count in split}

    def _numbers(self, key: str, reply: Mapping[bytes, bytes] | redis.exceptions.RedisError) -> dict[str, float]:
        """The fields of a hash that are finite numbers."""
        found: dict[str, float] = {}
        if isinstance(reply, redis.exceptions.RedisError):
            error = store_error(reply)
            if not isinstance(error, RecordError):
                raise error
            self._unreadable.skip("key", key, error)
            return found
        for name, value in reply.items():
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if math.isfinite(number):
                found[name.decode(errors="replace")] = number
            else:
                self._unreadable.skip("total", f"{key} {name!r:.200}", RecordError(f"{value!r:.60} is not a number"))
        return found


_TOTALS = (keys.ENGINE_TOTALS, keys.JOB_TOTALS)
