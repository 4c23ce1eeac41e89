"""The processor's cores, and their shares for several workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")  # Linux


def available_cores(topology: Path = TOPOLOGY) -> list[int]:
    """The logical cores that this process may use: those of a package, and of a physical core, next to each other."""
    every = range(os.cpu_count() or 1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else every
    return sorted(cores, key=lambda core: (*_place(topology / f"cpu{core}" / "topology", core), core))


def split_cores(cores: Sequence[int], workers: int) -> list[frozenset[int]]:
    """The cores of each worker: neighbors, and at most one more than another worker has."""
    edges = [len(cores) * k // workers for k in range(workers + 1)]
    return [frozenset(cores[first:end]) for first, end in pairwise(edges)]


def pin(cores: frozenset[int] | None) -> None:
    """Let this process run on these cores alone, where the platform can."""
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _place(folder: Path, core: int) -> tuple[int, int]:
    """The package and the physical core of a logical one; each by itself where the system does not say."""
    try:
        package, physical = (int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return 0, core
    return package, physical
