"""Evaluate a recorded graph at once with OpenMP's threads, or in the background with a pool's (thread_pool.c)."""

from __future__ import annotations

import ctypes
from typing import Any

from denoised.model.backends.native.kernel_abi import NativeEvaluation
from denoised.model.errors import KernelError


class ThreadPool:
    """Threads that evaluate in the background. They live as long as the process.

    Raises:
        KernelError: if the system has no threads left.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        create = library.denoised_pool_create
        create.argtypes, create.restype = [ctypes.c_long], ctypes.c_void_p
        self._pool = create(threads)
        if self._pool is None:
            raise KernelError(f"the system cannot start {threads} more threads for evaluations")
        self._begin, self._wait = library.denoised_pool_begin, library.denoised_pool_wait
        for function in (self._begin, self._wait):
            function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p], None

    def begin(self, evaluation: NativeEvaluation, keep_alive: Any) -> BackgroundEvaluation:
        """Queue an evaluation behind the earlier ones. keep_alive: what it reads and writes until it is finished."""
        self._begin(self._pool, ctypes.byref(evaluation))
        return BackgroundEvaluation(self, evaluation, keep_alive)

    def wait(self, evaluation: NativeEvaluation) -> None:
        """Wait until all its images are finished; other Python threads run meanwhile."""
        self._wait(self._pool, ctypes.byref(evaluation))


class BackgroundEvaluation:
    """An evaluation that a pool works on, with the memory that it needs."""

    def __init__(self, pool: ThreadPool, evaluation: NativeEvaluation, keep_alive: Any) -> None:
        self._pool, self._evaluation, self._keep_alive = pool, evaluation, keep_alive

    def wait(self) -> None:
        """Wait until it is finished."""
        self._pool.wait(self._evaluation)

    def __del__(self) -> None:
        self.wait()  # even if nobody reads the result: the pool still writes to its memory


_pools: dict[int, ThreadPool] = {}  # of the process, by threads: a second network needs no threads of its own


class EvaluationRunner:
    """The functions of thread_pool.c in the library of one network."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._run = library.denoised_run
        self._run.argtypes, self._run.restype = [ctypes.c_void_p, ctypes.c_long], None

    def run(self, evaluation: NativeEvaluation, threads: int) -> None:
        """Evaluate now, with so many threads, the calling one among them."""
        self._run(ctypes.byref(evaluation), threads)

    def pool(self, threads: int) -> ThreadPool:
        """The process's pool of so many threads."""
        if threads not in _pools:
            _pools[threads] = ThreadPool(self._library, threads)
        return _pools[threads]
