"""Compile the C files of this folder for one network and this machine.

This needs a C compiler and takes about two seconds. The library is kept in the user's cache folder, under a digest of
the sources, the compiler and the processor.
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
# Vectors are passed between inlined functions alone, so it does not matter that their ABI depends on the target.
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi"]
FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-fopenmp", "-fPIC", *WARNINGS]
# Every operation is rounded once, as written, so that no compiler changes a bit. A convolution consists of fused
# multiply-adds alone, which round once too.
ROUNDED, CONTRACTED = "-ffp-contract=off", "-ffp-contract=fast"
# The flag for this machine's own instruction set depends on the compiler and the architecture.
TARGETS: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])


def compiled(tiles: Sequence[str]) -> ctypes.CDLL:
    """The library with all kernels, and the convolutions of `tiles`, entries of TILES in convolutions.c.

    Raises:
        KernelError: if there is no C compiler, or its output cannot be loaded here.
    """
    reason = "there is no C compiler here (gcc, cc or what CC names)"
    for compiler in compilers():
        for target in TARGETS:
            try:
                return _load(compiler, _arguments(target, tiles))
            except (OSError, subprocess.SubprocessError) as error:
                output = getattr(error, "stderr", "") or str(error)
                reason = f"{shlex.join(compiler)} made no kernels: {_first_error(output)}"
    raise KernelError(reason)


def _first_error(output: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = output.strip().splitlines()
    return next((line for line in lines if "error:" in line), lines[0])


def _arguments(target: list[str], tiles: Sequence[str]) -> list[list[str]]:
    """The compiler's arguments for each object. The convolutions are two objects, to be compiled in parallel."""
    folder = Path(__file__).parent
    convolutions = [[CONTRACTED, f"-DTILES={' '.join(tiles[k::2])}", str(folder / "convolutions.c")] for k in range(2)]
    others = [
        [ROUNDED, str(folder / name)] for name in ("norm_layout.c", "attention.c", "transformer.c", "thread_pool.c")
    ]
    return [[*FLAGS, *target, "-c", *each] for each in (*convolutions, *others)]


def _load(compiler: list[str], arguments: list[list[str]]) -> ctypes.CDLL:
    """Load the library, from the cache folder if it is there."""
    with tempfile.TemporaryDirectory(prefix="denoised-") as scratch:
        cache = cache_folder()
        path = (cache or Path(scratch)) / f"kernels-{_digest(compiler, arguments)}.so"
        if not path.exists():
            built = _build(compiler, arguments, Path(scratch))
            if cache is not None:  # renamed within one file system, so that others see all of the file or nothing
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                shutil.copy(built, temporary)
                temporary.replace(path)
            else:
                path = built
        return ctypes.CDLL(str(path))


def _build(compiler: list[str], arguments: list[list[str]], folder: Path) -> Path:
    objects = [str(folder / f"{k}.o") for k in range(len(arguments))]
    commands = [[*compiler, *each, "-o", target] for each, target in zip(arguments, objects, strict=True)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(_run, commands))
    library = folder / "kernels.so"
    # Linked without an OpenMP library: torch has loaded one, and its threads serve these kernels too.
    _run([*compiler, "-shared", *objects, "-o", str(library)])
    return library


def _digest(compiler: list[str], arguments: list[list[str]]) -> str:
    """A digest of everything that the library depends on."""
    sources = sorted(Path(__file__).parent.glob("*.[ch]"))
    version = _run([*compiler, "--version"])
    parts = [version, _processor(), repr(arguments), *(source.read_text(encoding="utf-8") for source in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """The processor's features, as far as the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def cache_folder() -> Path | None:
    """The folder for compiled kernels, created if need be.

    None if it is not this user's alone to write: its files are loaded and run.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is ignored, as its specification says
        folder = (cache if cache.is_absolute() else Path.home() / ".cache") / "denoised"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: no HOME, and no entry in the password database
        return None
    return (
        folder if status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK) else None
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


def compilers() -> Iterator[list[str]]:
    """The compilers to try: what CC names, or else gcc and cc; those that are not installed are left out."""
    named = shlex.split(os.environ.get("CC", ""))
    for compiler in [named] if named else [["gcc"], ["cc"]]:
        if shutil.which(compiler[0]):
            yield compiler
