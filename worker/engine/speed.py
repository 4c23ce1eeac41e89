"""How fast the engine is, measured: rows a second of late, and what a turn of few or many rows takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MEMORY = 0.05  # share of the newest turn in what is remembered of turns of its size


@dataclass
class Turns:
    """Turns of about one size: how many, and the running means of their rows and seconds."""

    count: int = 0
    rows: float = 0.0
    seconds: float = 0.0

    def add(self, rows: float, seconds: float) -> None:
        self.count += 1
        share = max(MEMORY, 1 / self.count)
        self.rows += share * (rows - self.rows)
        self.seconds += share * (seconds - self.seconds)


class Speed:
    """Rows per second of the engine, averaged over about the last hundred turns, and each model's paces.

    A model's first turn counts in neither: in it libraries load their kernels.
    """

    def __init__(self) -> None:
        self.total = 0
        self._rows = 0.0
        self._seconds = 0.0
        self._turns: dict[str, dict[int, Turns]] = {}

    def add(self, model: str, rows: int, seconds: float) -> None:
        """A turn of a model, with what the loop around it took."""
        self.total += rows
        if model not in self._turns:
            self._turns[model] = {}
            return
        self._rows = 0.99 * self._rows + rows
        self._seconds = 0.99 * self._seconds + seconds
        self._turns[model].setdefault(rows.bit_length(), Turns()).add(rows, seconds)

    def expect(self, model: str, paces: Iterable[tuple[int, float]]) -> None:
        """What turns of (rows, seconds) take as measured before the first job; the first turns here replace it."""
        self._turns[model] = {rows.bit_length(): Turns(1, rows, seconds) for rows, seconds in paces}

    @property
    def per_second(self) -> float | None:
        """None before the second turn."""
        return self._rows / self._seconds if self._seconds else None

    def paces(self) -> dict[str, list[tuple[float, float]]]:
        """By model: (rows, seconds) of turns of each size that was seen, few rows first."""
        return {
            model: [(sizes[size].rows, sizes[size].seconds) for size in sorted(sizes)]
            for model, sizes in list(self._turns.items())
            if sizes
        }
