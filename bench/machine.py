"""What a measurement depends on besides the code: the machine, its instruction set, and torch."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# The flags there of the instruction sets that matter to oneDNN, the best last.
INSTRUCTION_SETS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bfloat16", "amx_tile": "AMX"}


@dataclass(frozen=True)
class Machine:
    """The hardware of a measurement.

    isa: the architecture and its instruction set extensions.
    torch: version.
    """

    cpu: str
    cores: int
    isa: str
    torch: str

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {self.isa}, torch {self.torch}"


def this_machine() -> Machine:
    """The machine that runs this program."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.exists() else ""
    return Machine(
        cpu=_field(text, "model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        isa=_isa(_field(text, "flags").split()),
        torch=version("torch"),
    )


def _field(cpuinfo: str, name: str) -> str:
    """A field of the first processor; "" if there is no such field."""
    found = re.search(rf"^{name}\s*:\s*(.*)$", cpuinfo, flags=re.MULTILINE)
    return found[1].strip() if found else ""


def _isa(flags: list[str]) -> str:
    extensions = [name for flag, name in INSTRUCTION_SETS.items() if flag in flags]
    return f"{platform.machine()} ({', '.join(extensions)})" if extensions else platform.machine()
