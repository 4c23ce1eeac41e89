"""Errors of the operating system in words, without their numbers."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\[Errno -?\d+\] ")


def describe_system_error(error: object) -> str:
    """An error as text: one of the system without its number, and after the file that it is about, if there is one."""
    if not isinstance(error, OSError) or not error.strerror:
        return _NUMBER.sub("", str(error))
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
