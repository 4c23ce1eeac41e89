"""What a network needs of an image's conditioning, computed once for each value and kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CACHE_BYTES = 32 * 2**20
MAX_ENTRIES = 16_384


class RowCache:
    """A function of the rows of some tensors, cached by their bytes.

    Each row is computed by itself, so that its bits do not depend on the others. If the cache is full, it is emptied.
    """

    def __init__(self, compute: Callable[..., Tensor]) -> None:
        """compute: inputs (1, …) → (1, N), with the same N for all."""
        self._compute = compute
        self._index: dict[bytes, int] = {}
        self._rows = torch.empty(0, 0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """inputs: (B, …) each, on the CPU. Returns (B, N)."""
        # Bytes, not values: NaN would equal nothing, and −0 would equal 0.
        keys = [b"".join(part.contiguous().numpy().tobytes() for part in row) for row in zip(*inputs, strict=True)]
        # Emptied before the first row of the batch is added, so that no row of this batch is lost.
        if len(self._index) + len(set(keys) - self._index.keys()) > len(self._rows):
            self._index.clear()
        for position, key in enumerate(keys):
            if key not in self._index:
                self._add(key, self._compute(*(each[position : position + 1] for each in inputs)), len(keys))
        return self._rows[[self._index[key] for key in keys]]

    def _add(self, key: bytes, row: Tensor, batch: int) -> None:
        # An inference tensor could not be written to outside of inference mode later.
        with torch.inference_mode(False):
            if len(self._index) == len(self._rows):  # none yet, or too few for this batch
                entries = max(batch, min(MAX_ENTRIES, CACHE_BYTES // (4 * row.shape[1])))
                grown = torch.empty(entries, row.shape[1])
                if self._index:
                    grown[: len(self._index)] = self._rows
                self._rows = grown
            self._rows[len(self._index)] = row[0]
        self._index[key] = len(self._index)
