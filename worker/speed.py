"""How fast the engine is, measured."""

from __future__ import annotations


class Speed:
    """Rows per second of the engine, averaged over about the last hundred turns."""

    def __init__(self) -> None:
        self.total = 0
        self._rows = 0.0
        self._seconds = 0.0

    def add(self, rows: int, seconds: float) -> None:
        self.total += rows
        self._rows = 0.99 * self._rows + rows
        self._seconds = 0.99 * self._seconds + seconds

    @property
    def per_second(self) -> float | None:
        """None before the first turn."""
        return self._rows / self._seconds if self._seconds else None
