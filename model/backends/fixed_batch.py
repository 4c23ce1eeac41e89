"""Batches of one size, for kernels that depend on the size of the batch: a batch that is not full is filled up.

A row then has the same bits next to any others, which `check_fixed_batch` verifies on the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from denoised.model.errors import KernelError

ORDERS = 4  # of the rows that are compared


def fill(rows: Tensor, size: int) -> Tensor:
    """(B, …) → (size, …): copies of the last row follow the B rows. B: 1 … size."""
    missing = size - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


@torch.inference_mode()
def check_fixed_batch(name: str, evaluate: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    """Check that a row has the same bits at every position, next to any others, and alone.

    evaluate: (N, …) → (N, …), for a batch of exactly N rows; rows: N different ones.

    Raises:
        KernelError: if it does not.
    """
    generator, first = torch.Generator().manual_seed(0), evaluate(rows)
    for _ in range(ORDERS):
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        alone = evaluate(fill(rows[order[:1]], len(rows)))[:1]
        if not (torch.equal(evaluate(rows[order]), first[order]) and torch.equal(alone, first[order[:1]])):
            raise KernelError(f"the bits of the {name} depend on the other rows of a batch on {rows.device}")
