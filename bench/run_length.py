"""How long a benchmark runs."""

from __future__ import annotations

from dataclasses import dataclass

CLIENTS = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8, 16, 32)
SIZES = (1, 2, 3, 4)  # multiples of the size of the model's images


@dataclass(frozen=True)
class RunLength:
    """Durations in seconds, and counts.

    rounds: samples of each quantity.
    seconds: duration of a load, after `warm_up`.
    sweep_seconds: duration of each load in the sweep over the number of clients.
    kernel_seconds: for how long one network is evaluated in each round.
    kernel_rounds: samples of each evaluation time.
    clients, batches, sizes: the points of the three sweeps.
    compiled: the batch sizes that the network is compiled for.
    jobs: number of jobs for the memory measurement.
    timeout: for a single image; only a hang takes that long.
    """

    rounds: int = 3
    seconds: float = 15.0
    warm_up: float = 3.0
    sweep_seconds: float = 6.0
    kernel_seconds: float = 0.6
    kernel_rounds: int = 7
    clients: tuple[int, ...] = CLIENTS
    batches: tuple[int, ...] = BATCHES
    sizes: tuple[int, ...] = SIZES
    compiled: tuple[int, ...] = (1, 16)
    jobs: int = 10_000
    timeout: float = 120.0


FULL = RunLength()
QUICK = RunLength(
    rounds=1,
    seconds=10.0,
    warm_up=2.0,
    sweep_seconds=5.0,
    kernel_seconds=0.3,
    kernel_rounds=3,
    clients=(1, 4, 16),
    batches=(1, 4, 16),
    sizes=(1, 2),
    compiled=(16,),
    jobs=1_500,
)
