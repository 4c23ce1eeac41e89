"""Run the tests that depend on arithmetic as other machines compute: other instruction sets, threads, no C compiler.

    python ops/processors.py                 all variants
    python ops/processors.py --only 3,7      some of them
    python ops/processors.py -- -k trainer   pytest's options

Each variant sets four variables for one run of pytest: what PyTorch and oneDNN may use of the processor, the number of
threads, and whether there is a C compiler. Any two values of two variables meet in some variant, which takes nine runs
in place of 54.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "tests/model/networks",
    "tests/model/backends",
    "tests/model/diffusion",
    "tests/model/training",
    "tests/model/serving",
    "tests/model/evaluation",
)
NO_COMPILER = "there-is-no-compiler"  # no such program


class Variant(NamedTuple):
    """One machine. An empty value leaves the choice to PyTorch, oneDNN, or the search for a compiler."""

    aten: str
    onednn: str
    threads: int
    compiler: bool

    def environment(self) -> dict[str, str]:
        chosen = {"ATEN_CPU_CAPABILITY": self.aten, "ONEDNN_MAX_CPU_ISA": self.onednn}
        chosen["CC"] = os.environ.get("CC", "") if self.compiler else NO_COMPILER
        inherited = {name: value for name, value in os.environ.items() if name not in chosen}
        return {
            **inherited,
            **{name: value for name, value in chosen.items() if value},
            "OMP_NUM_THREADS": str(self.threads),
            "GOMP_SPINCOUNT": "10000",
        }

    def __str__(self) -> str:
        compiler = "compiler" if self.compiler else "no compiler"
        return f"{self.aten or 'native':8} {self.onednn or 'native':12} {self.threads} thread(s)  {compiler}"


# The orthogonal array L9: every pair of values of two columns is in one row (in one or two rows, of the compiler).
VARIANTS = (
    Variant("", "", 1, compiler=True),
    Variant("", "AVX2", 2, compiler=False),
    Variant("", "AVX512_CORE", 4, compiler=True),
    Variant("avx2", "", 2, compiler=True),
    Variant("avx2", "AVX2", 4, compiler=True),
    Variant("avx2", "AVX512_CORE", 1, compiler=False),
    Variant("default", "", 4, compiler=False),
    Variant("default", "AVX2", 1, compiler=True),
    Variant("default", "AVX512_CORE", 2, compiler=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the arithmetic tests as other machines compute.")
    parser.add_argument("--only", default="", help="numbers of variants, from 1, separated by commas")
    parser.add_argument("pytest", nargs="*", help="options of pytest, after --")
    given = parser.parse_args()
    chosen = [int(number) for number in given.only.split(",") if number] or range(1, len(VARIANTS) + 1)
    outcomes = [run(number, VARIANTS[number - 1], given.pytest) for number in chosen]
    sys.exit(not all(outcomes))


def run(number: int, variant: Variant, options: list[str]) -> bool:
    """Run the tests as one machine, and print one line; the output of pytest too if they fail."""
    started = time.monotonic()
    tests = TESTS if not any(option.startswith("tests/") for option in options) else ()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *options]
    done = subprocess.run(command, cwd=ROOT, env=variant.environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n")
    lines = done.stdout.strip().splitlines() or [""]
    summary = re.sub(r" in .*", "", lines[-1].strip("= "))
    print(f"{number}  {variant}  {summary}  ({time.monotonic() - started:.0f} s)", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
