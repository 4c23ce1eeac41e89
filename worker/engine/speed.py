"""How fast the engine is, measured while it serves: rows per second, and the duration of turns by their size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SMOOTHING = 0.05  # weight of the newest turn in the running means of turns of its size
DECAY = 0.99  # of older turns in `Speed.per_second`


@dataclass
class TurnStatistics:
    """Turns of about one size: how many, and the running means of their rows and seconds."""

    count: int = 0
    rows: float = 0.0
    seconds: float = 0.0

    def add(self, rows: float, seconds: float) -> None:
        """Include a turn in the means."""
        self.count += 1
        weight = max(SMOOTHING, 1 / self.count)
        self.rows += weight * (rows - self.rows)
        self.seconds += weight * (seconds - self.seconds)


class Speed:
    """Rows per second of the engine, averaged over about the last hundred turns, and the paces of each model.

    The first turn of a model counts in neither: libraries load their kernels in it.

    Attributes:
        total: All rows so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._rows = 0.0
        self._seconds = 0.0
        self._turns: dict[str, dict[int, TurnStatistics]] = {}  # by model, by bit length of the rows
        self._decoding: dict[str, TurnStatistics] = {}  # by model; its "rows" are images

    def add(self, model: str, rows: int, seconds: float) -> None:
        """Include a turn of a model, with the time that the loop around it took."""
        self.total += rows
        if model not in self._turns:
            self._turns[model] = {}
            return
        self._rows = DECAY * self._rows + rows
        self._seconds = DECAY * self._seconds + seconds
        self._turns[model].setdefault(rows.bit_length(), TurnStatistics()).add(rows, seconds)

    def expect(self, model: str, paces: Iterable[tuple[int, float]]) -> None:
        """Start with (rows, seconds) of turns measured before the first job; the first turns here replace them."""
        self._turns[model] = {rows.bit_length(): TurnStatistics(1, rows, seconds) for rows, seconds in paces}

    def add_decoding(self, model: str, images: int, seconds: float) -> None:
        """Include a batch of finished images that were decoded. Another thread than that of the turns may call it."""
        self._decoding.setdefault(model, TurnStatistics()).add(images, seconds)

    def decode_seconds(self) -> dict[str, float]:
        """By model: seconds for decoding one image, in batches as they were."""
        return {model: batches.seconds / batches.rows for model, batches in list(self._decoding.items())}

    @property
    def per_second(self) -> float | None:
        """Rows per second; None before the second turn."""
        return self._rows / self._seconds if self._seconds else None

    def paces(self) -> dict[str, list[tuple[float, float]]]:
        """By model: mean (rows, seconds) of the turns of each size so far, the smallest first."""
        return {
            model: [(sizes[size].rows, sizes[size].seconds) for size in sorted(sizes)]
            for model, sizes in list(self._turns.items())
            if sizes
        }
