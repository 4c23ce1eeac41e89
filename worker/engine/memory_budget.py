"""How many bytes the evaluations of a worker may take, from what is free after its models are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

SHARE = 0.5  # of the free memory; the rest is for the decoder, for pictures, and for other programs
MEMINFO = Path("/proc/meminfo")
CGROUP_FILES = (  # of a container: limit and use, in version 2 and in version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def evaluation_budget(device: str) -> int | None:
    """The bytes that one evaluation may take; None if the device does not say how much is free."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = min((*_available(), *_within_container()), default=0)
    return int(SHARE * free) or None


def _available() -> Iterator[int]:
    """What Linux can give to a process without swapping."""
    for line in _text(MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _within_container() -> Iterator[int]:
    for limit, used in CGROUP_FILES:
        most, now = _text(Path(limit)).strip(), _text(Path(used)).strip()
        if most.isdecimal() and now.isdecimal():
            yield max(1, int(most) - int(now))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
