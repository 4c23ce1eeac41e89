"""Who makes a program's calls: this thread and OpenMP's, or threads of our own meanwhile (thread_pool.c)."""

from __future__ import annotations

import ctypes
from typing import Any

from denoised.model.errors import KernelError


class Call(ctypes.Structure):
    """As in thread_pool.c."""

    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("inside", ctypes.c_void_p),
        ("count", ctypes.c_long),
    )


class IoBinding(ctypes.Structure):
    """As in thread_pool.c."""

    _fields_ = (("outside", ctypes.c_void_p), ("inside", ctypes.c_void_p), ("bytes", ctypes.c_long))


class Evaluation(ctypes.Structure):
    """As in thread_pool.c."""

    _fields_ = (
        ("calls", ctypes.c_void_p),
        ("count", ctypes.c_long),
        ("inputs", ctypes.c_void_p),
        ("input_count", ctypes.c_long),
        ("output", IoBinding),
        ("images", ctypes.c_long),
        ("first", ctypes.c_long),
        ("arena", ctypes.c_long),
        ("begun", ctypes.c_long),
        ("done", ctypes.c_long),
        ("next", ctypes.c_void_p),
    )


class ThreadPool:
    """Threads that make evaluations while whoever begins them does something else. They live as long as the process.

    Raises:
        KernelError: where there are no threads to be had.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        library.denoised_crew.argtypes, library.denoised_crew.restype = [ctypes.c_long], ctypes.c_void_p
        self._crew = library.denoised_crew(threads)
        if self._crew is None:
            raise KernelError(f"the system has no {threads} threads more for evaluations")
        for function in (library.denoised_begin, library.denoised_wait):
            function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p], None
        self._begin, self._wait = library.denoised_begin, library.denoised_wait

    def begin(self, evaluation: Evaluation, kept: Any) -> PendingEvaluation:
        """Begin one, after those that were begun before. kept: what must not go before it is done."""
        self._begin(self._crew, ctypes.byref(evaluation))
        return PendingEvaluation(self, evaluation, kept)

    def wait(self, evaluation: Evaluation) -> None:
        """Until all its images are done; other Python threads go on meanwhile."""
        self._wait(self._crew, ctypes.byref(evaluation))


class PendingEvaluation:
    """An evaluation that has begun, with the memory that it is made in."""

    def __init__(self, crew: ThreadPool, evaluation: Evaluation, kept: Any) -> None:
        self._crew, self._evaluation, self._kept = crew, evaluation, kept

    def wait(self) -> None:
        """Until it is done."""
        self._crew.wait(self._evaluation)

    def __del__(self) -> None:
        self.wait()  # nobody wants it any more, but it is still written


_crews: dict[int, ThreadPool] = {}  # of the process: two networks do not need more threads than one


class Runner:
    """The functions of thread_pool.c in a network's library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._run = library.denoised_run
        self._run.argtypes, self._run.restype = [ctypes.c_void_p, ctypes.c_long], None

    def run(self, evaluation: Evaluation, threads: int) -> None:
        """Make it now, with so many threads, this one among them."""
        self._run(ctypes.byref(evaluation), threads)

    def crew(self, threads: int) -> ThreadPool:
        """The process's crew of so many."""
        if threads not in _crews:
            _crews[threads] = ThreadPool(self._library, threads)
        return _crews[threads]
