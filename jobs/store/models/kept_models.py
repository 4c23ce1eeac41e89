"""What remains of a model while no worker serves it: its card, and how fast it was.

Workers write it now and then. The front end reads it, so that jobs can wait for a model whose workers are started on
demand, and so that autoscalers know how much work waits for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar, cast

import redis

from denoised.jobs.errors import RecordError
from denoised.jobs.format import UnreadableLog, parse_json, read_dataclass
from denoised.jobs.redis.refusals import store_error
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.script_prelude import PRELUDE
from denoised.jobs.store.store_connection import StoreConnection
from denoised.jobs.worker_report import MAX_REPORT_BYTES, WorkerReport

V = TypeVar("V")

# Works at `maxmemory`, too. KEYS: the hash. ARGV: names and values.
KEEP = (
    PRELUDE
    + """
pass_memory_limit()
own(KEYS[1], 'hash')
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
"""
)


@dataclass(frozen=True)
class KeptModel:
    """A model as a worker reported it.

    Attributes:
        place: In the list of the worker's models; the first is the default.
        report: What the worker reported about this model alone, without load and counters.
    """

    place: int
    report: WorkerReport

    def to_json(self) -> str:
        return json.dumps({"place": self.place, "report": asdict(self.report)})

    @classmethod
    def from_json(cls, text: str | bytes) -> KeptModel:
        """The inverse of `to_json`.

        Raises:
            RecordError: when it cannot be decoded, or requires a field that is unknown here.
        """
        raw = parse_json(text, MAX_REPORT_BYTES)
        if not isinstance(raw, dict):
            raise RecordError(f"KeptModel is a {type(raw).__name__} (allowed: an object)")
        report = WorkerReport.from_json(json.dumps(raw.get("report")))
        return read_dataclass(cls, {**raw, "report": report})


def kept_models(report: WorkerReport) -> dict[str, KeptModel]:
    """What to keep of a worker's report, by model."""
    found = {}
    for place, card in enumerate(report.models):
        name = card["name"]
        own = replace(
            report,
            name="",
            models=[card],
            trajectories=0,
            pending_evaluations=0,
            batches=_only(report.batches, name),
            paces=_only(report.paces, name),
            decode_seconds=_only(report.decode_seconds, name),
            counters={},
            states=[],
        )
        found[name] = KeptModel(place, own)
    return found


class KeptModels:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._keep = connection.client.register_script(KEEP)
        self._unreadable = UnreadableLog()

    def keep(self, models: Mapping[str, KeptModel]) -> None:
        """Write what to keep of some models, by name."""
        values = [text for name, model in models.items() for text in (name, model.to_json())]
        with self._connection.reachable():
            self._keep(keys=[keys.KEPT_MODELS], args=values)

    def read(self, names: Iterable[str]) -> dict[str, KeptModel]:
        """What was kept of these models, those of the first places first. What cannot be read is skipped."""
        asked = list(names)
        if not asked:
            return {}
        try:
            with self._connection.reachable():
                values = cast("Sequence[bytes | None]", self._connection.client.hmget(keys.KEPT_MODELS, asked))
        except RecordError as error:
            self._unreadable.skip("key", keys.KEPT_MODELS, error)
            return {}
        found = {name: model for name, value in zip(asked, values, strict=True) if (model := self._read(name, value))}
        return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))

    def forget(self, names: Iterable[str]) -> None:
        """Keep nothing of these models any more; they were removed for good."""
        with self._connection.reachable(), self._connection.client.pipeline() as pipe:
            for name in names:
                pipe.hdel(keys.KEPT_MODELS, name)
            for reply in pipe.execute(raise_on_error=False):
                if isinstance(reply, redis.exceptions.RedisError):
                    raise store_error(reply)

    def _read(self, name: str, value: bytes | None) -> KeptModel | None:
        if value is None:
            return None
        try:
            model = KeptModel.from_json(value)
            if [card["name"] for card in model.report.models] != [name]:
                raise RecordError("it is the record of another model")
        except RecordError as error:
            self._unreadable.skip("card", name, error)
            return None
        return model


def _only(values: Mapping[str, V], name: str) -> dict[str, V]:
    return {name: values[name]} if name in values else {}
