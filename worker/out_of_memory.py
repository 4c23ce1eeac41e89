"""Recognizes running out of memory, on the device or in the process."""

from __future__ import annotations

import errno
import re

import torch

# torch reports a failed allocation on the CPU, and C++ libraries a std::bad_alloc, as RuntimeError.
_ALLOCATION = re.compile(r"bad_alloc|can(no|')t allocate memory|out of memory|not enough memory", re.I)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _ALLOCATION.search(str(error)) is not None
