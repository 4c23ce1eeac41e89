"""The structures of `kernel_abi.h` as ctypes declares them, and a check that both agree."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from denoised.model.errors import KernelError

POINTER, NUMBER, REAL = "pointer", "number", "real"  # kinds of arguments: the members of the union


class Argument(ctypes.Union):
    """`argument`: one argument of a kernel."""

    _fields_ = ((POINTER, ctypes.c_void_p), (NUMBER, ctypes.c_long), (REAL, ctypes.c_float))


class NativeCall(ctypes.Structure):
    """`kernel_call`: one call of a recorded graph."""

    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("in_arena", ctypes.c_void_p),
        ("count", ctypes.c_long),
    )


class IoBinding(ctypes.Structure):
    """`io_binding`: where the caller and the first arena have an input or the output."""

    _fields_ = (("caller", ctypes.c_void_p), ("arena", ctypes.c_void_p), ("bytes", ctypes.c_long))


class NativeEvaluation(ctypes.Structure):
    """`evaluation`: one evaluation of a recorded graph."""

    _fields_ = (
        ("calls", ctypes.c_void_p),
        ("count", ctypes.c_long),
        ("inputs", ctypes.c_void_p),
        ("input_count", ctypes.c_long),
        ("output", IoBinding),
        ("images", ctypes.c_long),
        ("chunk", ctypes.c_long),
        ("first_arena", ctypes.c_long),
        ("arena_bytes", ctypes.c_long),
        ("started", ctypes.c_long),
        ("finished", ctypes.c_long),
        ("next", ctypes.c_void_p),
    )


STRUCTURES = (Argument, NativeCall, IoBinding, NativeEvaluation)  # in the order of `denoised_struct_sizes`


def check_struct_sizes(library: ctypes.CDLL) -> None:
    """Compare the sizes of all structures with those that the compiler gave them.

    Raises:
        KernelError: if one differs, naming it and both sizes.
    """
    compiled = (ctypes.c_long * len(STRUCTURES)).in_dll(library, "denoised_struct_sizes")
    for structure, size in zip(STRUCTURES, compiled, strict=True):
        if ctypes.sizeof(structure) != size:
            raise KernelError(
                f"the compiled kernels do not fit: {structure.__name__} has {ctypes.sizeof(structure)} bytes here "
                f"and {size} in the library"
            )


def argument_list(kinds: Sequence[str], arguments: Sequence[Any]) -> ctypes.Array[Argument]:
    """The arguments of a kernel in the form that it takes."""
    return (Argument * len(kinds))(*(Argument(**{k: v}) for k, v in zip(kinds, arguments, strict=True)))
