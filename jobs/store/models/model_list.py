"""What operators have ordered about models: which are removed, and which must be read again.

The orders are in Redis, so that all workers follow them, also those that start later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from denoised.jobs.errors import RecordError
from denoised.jobs.format import UnreadableLog, parse_json, read_dataclass
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.script_prelude import PRELUDE
from denoised.jobs.store.store_connection import StoreConnection

MAX_ORDER_BYTES = 1000

# Changes the orders about a model. KEYS: the orders. ARGV: model, "1" removed, "0" not, "" as it is.
# Returns the new order. `generation` rises, so that a worker reads the folder again.
ORDER = (
    PRELUDE
    + """
pass_memory_limit()
own(KEYS[1], 'hash')
local read, order = pcall(cjson.decode, redis.call('HGET', KEYS[1], ARGV[1]) or '{}')
if not read or type(order) ~= 'table' then order = {} end
local generation = tonumber(order.generation) or 0
local removed = order.removed == true
if ARGV[2] ~= '' then removed = ARGV[2] == '1' end
local text = cjson.encode({removed = removed, generation = generation + 1})
redis.call('HSET', KEYS[1], ARGV[1], text)
return text
"""
)


@dataclass(frozen=True)
class StoredOrder:
    """What was ordered about a model.

    Attributes:
        removed: No worker serves it, and its waiting jobs fail.
        generation: How often something was ordered; workers read its folder again when it rises.
    """

    removed: bool = False
    generation: int = 0


NO_ORDER = StoredOrder()


class ModelList:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._order = connection.client.register_script(ORDER)
        self._unreadable = UnreadableLog()

    def read(self) -> dict[str, StoredOrder]:
        """All orders, by model. What cannot be read is skipped."""
        try:
            with self._connection.reachable():
                values = cast("dict[bytes, bytes]", self._connection.client.hgetall(keys.MODEL_ORDERS))
        except RecordError as error:
            self._unreadable.skip("key", keys.MODEL_ORDERS, error)
            return {}
        found = {}
        for name, value in values.items():
            try:
                found[name.decode(errors="replace")] = _read(value)
            except RecordError as error:
                self._unreadable.skip("card", name.decode(errors="replace"), error)
        return found

    def add(self, name: str) -> StoredOrder:
        """Serve a model again that was removed, and read its folder again."""
        return self._change(name, "0")

    def remove(self, name: str) -> StoredOrder:
        """Serve a model no more."""
        return self._change(name, "1")

    def reload(self, name: str) -> StoredOrder:
        """Read a model's folder again."""
        return self._change(name, "")

    def _change(self, name: str, removed: str) -> StoredOrder:
        with self._connection.reachable():
            text = cast("bytes", self._order(keys=[keys.MODEL_ORDERS], args=[name, removed]))
        return _read(text)


def _read(text: bytes) -> StoredOrder:
    order = read_dataclass(StoredOrder, parse_json(text, MAX_ORDER_BYTES))
    if order.generation < 0:
        raise RecordError(f"StoredOrder.generation is {order.generation} (allowed: 0 or more)")
    return order
