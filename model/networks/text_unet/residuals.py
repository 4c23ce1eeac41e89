"""What ControlNets add to the skip tensors of a U-Net, for some rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Residuals:
    """Tensors that are added to the skip tensors and to the output of the middle block.

    Attributes:
        rows: The n rows of the batch that have some, ascending.
        maps: One for each skip tensor, in the order of the way down, and the last one for the middle: (n, C, h, w), or
            (n, C, 1, 1) of ControlNets that pool theirs.
    """

    rows: Sequence[int]
    maps: Sequence[Tensor]

    @classmethod
    def of(cls, by_row: Mapping[int, Sequence[Tensor]]) -> Residuals | None:
        """Those of each row, each (C, h, w) or (C, 1, 1); None if no row has some."""
        if not by_row:
            return None
        rows = sorted(by_row)
        columns = zip(*(by_row[row] for row in rows), strict=True)
        return cls(rows, [torch.stack(torch.broadcast_tensors(*column)) for column in columns])

    def select(self, rows: Sequence[int]) -> Residuals | None:
        """Those of a batch of some of the rows; None if none of them has some."""
        chosen = [(position, self.rows.index(row)) for position, row in enumerate(rows) if row in self.rows]
        if not chosen:
            return None
        index = [own for _, own in chosen]
        return Residuals([position for position, _ in chosen], [each[index] for each in self.maps])

    def add_to(self, skips: Sequence[Tensor], middle: Tensor) -> tuple[list[Tensor], Tensor]:
        """The skip tensors and the middle's output with these added. The other rows keep their bits."""
        rows = torch.tensor(self.rows, device=middle.device)
        sums = [_added(x, rows, own) for x, own in zip((*skips, middle), self.maps, strict=True)]
        return sums[:-1], sums[-1]


def _added(x: Tensor, rows: Tensor, residual: Tensor) -> Tensor:
    # A row's own shape is that of the batch, also where the residual is pooled.
    return x.index_copy(0, rows, x[rows] + residual.to(x.dtype))
