"""The objects that were read last: the viewers of a job all read the same frames, one after the other."""

from __future__ import annotations

import threading
from collections import OrderedDict

MAX_BYTES = 64 << 20


class ObjectCache:
    """Thread-safe."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        """limit: bytes."""
        self._limit = limit
        self._bytes = 0
        self._objects: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> bytes | None:
        with self._lock:
            if name in self._objects:
                self._objects.move_to_end(name)
            return self._objects.get(name)

    def add(self, name: str, data: bytes) -> None:
        """Keep an object; those that were used longest ago leave."""
        with self._lock:
            self._bytes += len(data) - len(self._objects.pop(name, b""))
            self._objects[name] = data
            while self._bytes > self._limit:
                _, left = self._objects.popitem(last=False)
                self._bytes -= len(left)
