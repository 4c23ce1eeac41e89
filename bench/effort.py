"""How long a benchmark may take."""

from __future__ import annotations

from dataclasses import dataclass

CLIENTS = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8, 16, 32)
SIZES = (1, 2, 3, 4)  # times the size of the model's pictures


@dataclass(frozen=True)
class Effort:
    """Seconds and counts.

    rounds: samples of every figure; seconds: of a load, after warm_up; sweep_seconds: of a load in a sweep over
    clients; spell: for which one thing of the kernels is repeated in a round; kernel_rounds: of those; compiled: the
    batch sizes for which the network is compiled; jobs: through one worker whose memory is watched; patience: for one
    picture; only a hang reaches it.
    """

    rounds: int = 3
    seconds: float = 15.0
    warm_up: float = 3.0
    sweep_seconds: float = 6.0
    spell: float = 0.6
    kernel_rounds: int = 7
    clients: tuple[int, ...] = CLIENTS
    batches: tuple[int, ...] = BATCHES
    sizes: tuple[int, ...] = SIZES
    compiled: tuple[int, ...] = (1, 16)
    jobs: int = 10_000
    patience: float = 120.0


FULL = Effort()
QUICK = Effort(
    rounds=1,
    seconds=10.0,
    warm_up=2.0,
    sweep_seconds=5.0,
    spell=0.3,
    kernel_rounds=3,
    clients=(1, 4, 16),
    batches=(1, 4, 16),
    sizes=(1, 2),
    compiled=(16,),
    jobs=1_500,
)
