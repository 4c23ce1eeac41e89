"""Tells errors apart: a lack of memory, on the device or in the process, and what a broken device may raise."""

from __future__ import annotations

import errno
import re

import torch

from denoised.jobs.errors import StoreError
from denoised.model.errors import ModelError
from denoised.worker.errors import WorkerError

# torch reports a failed allocation as RuntimeError, C++ libraries a std::bad_alloc, too; the loader as ImportError.
_ALLOCATION = re.compile(
    r"bad_alloc|can(no|')t allocate memory|out of memory|not enough memory|failed to map segment", re.I
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    try:
        return isinstance(error, RuntimeError | ImportError) and _ALLOCATION.search(str(error)) is not None
    except MemoryError:  # nothing is left to read the message with
        return True


def may_be_the_devices(error: BaseException) -> bool:
    """Whether an error may come from the device: it is none of ours, and no lack of memory."""
    return not isinstance(error, WorkerError | ModelError | StoreError) and not is_out_of_memory(error)
