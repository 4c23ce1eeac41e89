"""Recognizes running out of memory, on the device or in the process."""

from __future__ import annotations

import errno
import re

# torch reports a failed allocation as RuntimeError, C++ libraries a std::bad_alloc, too; the loader as ImportError.
_ALLOCATION = re.compile(
    r"bad_alloc|can(no|')t allocate memory|out of memory|not enough memory|failed to map segment", re.I
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | ImportError) and _ALLOCATION.search(str(error)) is not None
