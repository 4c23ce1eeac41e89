"""Compiles the C files of this folder for one network and this machine.

A C compiler and two seconds are all that takes. The outcome is kept in the user's cache folder, under a
name that says what it was made from, with what, and for which processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from denoised.model.errors import KernelError

SECONDS = 120.0  # for one file
FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-w"]
# Every operation rounded once, as it is written, so that no compiler changes a bit; but a convolution, which is nothing
# else, multiplies and adds in one.
ROUNDED, CONTRACTED = "-ffp-contract=off", "-ffp-contract=fast"
# For the machine it is compiled on, where the compiler knows how to say that.
TARGETS: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])


def compiled(tiles: Sequence[str]) -> ctypes.CDLL:
    """The library with the convolutions of some tiles, lines as in convolutions.c, and with all else.

    Raises:
        KernelError: where there is no C compiler, or it makes nothing that can be loaded here.
    """
    said = "there is no C compiler here (gcc, cc or what CC names)"
    for compiler in compilers():
        for target in TARGETS:
            try:
                return _loaded(compiler, _jobs(target, tiles))
            except (OSError, subprocess.SubprocessError) as error:
                output = getattr(error, "stderr", "") or str(error)
                said = f"{shlex.join(compiler)} made no kernels: {output.strip().splitlines()[0]}"
    raise KernelError(said)


def _jobs(target: list[str], tiles: Sequence[str]) -> list[list[str]]:
    """The arguments of a compiler for each object; the convolutions in two, to be made at once."""
    folder = Path(__file__).parent
    convolutions = [[CONTRACTED, f"-DTILES={' '.join(tiles[k::2])}", str(folder / "convolutions.c")] for k in range(2)]
    others = [[ROUNDED, str(folder / name)] for name in ("norm_layout.c", "attention.c", "thread_pool.c")]
    return [[*FLAGS, *target, "-c", *each] for each in (*convolutions, *others)]


def _loaded(compiler: list[str], jobs: list[list[str]]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="denoised-") as scratch:
        kept = cache_folder()
        path = (kept or Path(scratch)) / f"kernels-{_name(compiler, jobs)}.so"
        if not path.exists():
            made = _made(compiler, jobs, Path(scratch))
            if kept is not None:  # on its own file system a file appears whole
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                shutil.copy(made, temporary)
                temporary.replace(path)
            else:
                path = made
        return ctypes.CDLL(str(path))


def _made(compiler: list[str], jobs: list[list[str]], folder: Path) -> Path:
    objects = [str(folder / f"{k}.o") for k in range(len(jobs))]
    with ThreadPoolExecutor() as pool:
        list(pool.map(_run, ([*compiler, *job, "-o", made] for job, made in zip(jobs, objects, strict=True))))
    library = folder / "made.so"
    # Linked without a name for OpenMP: torch has loaded one, whose threads are also ours.
    _run([*compiler, "-shared", *objects, "-o", str(library)])
    return library


def _name(compiler: list[str], jobs: list[list[str]]) -> str:
    """A digest of all that decides what comes out."""
    sources = sorted(Path(__file__).parent.glob("*.[ch]"))
    version = _run([*compiler, "--version"])
    parts = [version, _processor(), repr(jobs), *(source.read_text(encoding="utf-8") for source in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """What the processor offers, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def cache_folder() -> Path | None:
    """Ours alone, or none: what lies in it is run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "denoised"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    return (
        folder if status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK) else None
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
    )
    return done.stdout


def compilers() -> Iterator[list[str]]:
    """What there is to compile with: what CC names, or else gcc and cc."""
    named = shlex.split(os.environ.get("CC", ""))
    for compiler in [named] if named else [["gcc"], ["cc"]]:
        if shutil.which(compiler[0]):
            yield compiler
