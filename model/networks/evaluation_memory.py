"""How much memory the evaluation of a U-Net takes for one image, estimated from its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESIDUAL_MAPS = 10  # feature maps of a level that exist at once in a residual block, with the skip tensors it joins
TRANSFORMER_MAPS = 21  # in a transformer: its gated layer alone is eight times as wide as its input


@dataclass(frozen=True)
class EvaluationMemory:
    """The feature maps of a U-Net; attention is computed without its matrix of N·N scores.

    Attributes:
        channels: Of each level, the highest resolution first; each level halves height and width.
        layers: Blocks of each level on the way down, whose outputs are kept for the way up.
        maps: RESIDUAL_MAPS or TRANSFORMER_MAPS for each level.
        number_bytes: Of one number: 4 in float32.
    """

    channels: Sequence[int]
    layers: Sequence[int]
    maps: Sequence[int]
    number_bytes: int = 4

    def row_bytes(self, height: int, width: int) -> int:
        """Bytes for one row of a batch, of this height and width."""
        sizes = [count * height * width / 4**level for level, count in enumerate(self.channels)]
        kept = sum(size * (layers + 1) for size, layers in zip(sizes, self.layers, strict=True))
        largest = max(size * maps for size, maps in zip(sizes, self.maps, strict=True))
        return round(self.number_bytes * (kept + largest))
