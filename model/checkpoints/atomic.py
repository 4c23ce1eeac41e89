"""Files that appear whole or not at all, also when the program or the machine is stopped meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush it to disk, then put it in place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(temporary)
    temporary.chmod(0o666 & ~_umask())
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """The same for a short text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _flush(path: Path) -> None:
    """To the disk: a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process' own; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
