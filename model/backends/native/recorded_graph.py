"""The kernels that a network calls for one image, recorded, to be called again without its modules.

At small batches Python takes as long between two kernels as the kernels themselves. So the calls for one image are
recorded once, and from then on one C function repeats them for all images of a batch (thread_pool.c), each thread in
an arena of its own.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from denoised.model.backends.native.kernel_abi import (
    POINTER,
    IoBinding,
    NativeCall,
    NativeEvaluation,
    argument_list,
)
from denoised.model.backends.native.kernels import KernelCall
from denoised.model.backends.native.thread_pool import EvaluationRunner

ALIGNMENT = 256  # bytes; of every buffer in an arena


@dataclass
class Buffer:
    """The memory of one recorded tensor, and where it is in an arena.

    Attributes:
        start, stop: Its addresses during the recording.
        first_use, last_use: Of the recorded calls, by index; −1 is before all of them.
        offset: In an arena, in bytes.
    """

    start: int
    stop: int
    first_use: int
    last_use: int
    offset: int = field(default=0)

    def size(self, images: int) -> int:
        """Bytes in an arena for so many images."""
        return -(-images * (self.stop - self.start) // ALIGNMENT) * ALIGNMENT

    def is_used_with(self, other: Buffer) -> bool:
        """Whether both are in use at the same time."""
        return self.first_use <= other.last_use and other.first_use <= self.last_use


class RecordedGraph:
    """The recorded calls for one image, in an arena where tensors that are used at different times share memory.

    Not for two threads at a time, but one thread may begin several evaluations.
    """

    def __init__(
        self,
        runner: EvaluationRunner,
        calls: Sequence[KernelCall],
        tensors: Sequence[Tensor],
        inputs: Sequence[Tensor],
        output: Tensor,
        chunk: int = 1,
    ) -> None:
        """tensors: everything that the calls wrote to, and the inputs; output: the result, or its first channels;
        chunk: the most images that a thread takes through the kernels together."""
        self._runner = runner
        self._recorded = calls
        self._buffers = _find_buffers(calls, tensors, inputs, output)
        self._starts = [buffer.start for buffer in self._buffers]
        self._chunk = chunk
        self._arena_bytes = _assign_offsets(self._buffers, chunk)
        self._inputs, self._output = inputs, output
        self._allocate(torch.get_num_threads())

    def run(self, *inputs: Tensor) -> Tensor:
        """Evaluate now. inputs: in the order of the recording, (B, …) each, with the same memory layout."""
        threads = torch.get_num_threads()
        # The first half of the arenas is for `run`, the second for the pool: one may run in the background meanwhile.
        evaluation, _, output = self._evaluation(inputs, threads, first_arena=0)
        self._runner.run(evaluation, threads)
        return output

    def begin(self, *inputs: Tensor) -> Callable[[], Tensor]:
        """Begin to evaluate in the process's thread pool, and return a function that waits for the output."""
        threads = torch.get_num_threads()
        evaluation, keep_alive, output = self._evaluation(inputs, threads, first_arena=threads)
        background = self._runner.pool(threads).begin(evaluation, keep_alive)

        def result() -> Tensor:
            background.wait()
            return output

        return result

    def _evaluation(
        self, inputs: Sequence[Tensor], threads: int, first_arena: int
    ) -> tuple[NativeEvaluation, Any, Tensor]:
        """An evaluation of these inputs in `threads` arenas, what must stay alive for it, and its output."""
        if threads > self._threads:
            self._allocate(threads)
        images = len(inputs[0])
        _, channels, height, width = self._output.shape
        # Output channels are padded to whole vectors: all of them are copied, and the first are returned.
        whole = torch.empty(images, height, width, self._output_binding.bytes // (4 * height * width))
        bindings = (IoBinding * len(inputs))(
            *(
                IoBinding(tensor.data_ptr(), binding.arena, binding.bytes)
                for tensor, binding in zip(inputs, self._input_bindings, strict=True)
            )
        )
        evaluation = NativeEvaluation(
            calls=ctypes.addressof(self._calls),
            count=len(self._calls),
            inputs=ctypes.addressof(bindings),
            input_count=len(bindings),
            output=IoBinding(whole.data_ptr(), self._output_binding.arena, self._output_binding.bytes),
            images=images,
            # No more images at once than one thread's share, so that none of the threads is idle.
            chunk=min(self._chunk, -(-images // threads)),
            first_arena=first_arena,
            arena_bytes=self._arena_bytes,
        )
        keep_alive = (inputs, bindings, whole, self._memory, self._arguments, self._in_arena, self._calls)
        return evaluation, keep_alive, whole[..., :channels].permute(0, 3, 1, 2)

    def _allocate(self, threads: int) -> None:
        """Allocate arenas for the threads of `run` and for as many of the pool, and point the calls into the first."""
        self._threads = threads
        # float32, so four bytes each; one arena for each thread of `run`, and one for each of the pool.
        self._memory = torch.empty(2 * threads * self._arena_bytes // 4)
        # Weights stay where they are. ctypes copies no pointer, so these arrays must live as long as the calls.
        self._arguments = [
            argument_list(call.kinds, [self._relocated(*each) for each in _typed_arguments(call)])
            for call in self._recorded
        ]
        # One byte per argument: thread_pool.c adds a thread's distance from the first arena to these alone.
        self._in_arena = [bytes(self._is_in_arena(*each) for each in _typed_arguments(call)) for call in self._recorded]
        self._calls = (NativeCall * len(self._recorded))(
            *(
                NativeCall(_address(call.kernel), _address(arguments), _address(in_arena), len(arguments))
                for call, arguments, in_arena in zip(self._recorded, self._arguments, self._in_arena, strict=True)
            )
        )
        self._input_bindings = [self._binding(tensor) for tensor in self._inputs]
        self._output_binding = self._binding(self._output)

    def _binding(self, tensor: Tensor) -> IoBinding:
        """Where the memory of a tensor, or of the tensor that it is a view of, is in the first arena."""
        buffer = self._buffer_at(tensor.data_ptr())
        assert buffer is not None
        return IoBinding(None, self._memory.data_ptr() + buffer.offset, buffer.stop - buffer.start)

    def _is_in_arena(self, kind: str, value: Any) -> bool:
        """Whether an argument points to a recorded tensor; else it is a weight or a number."""
        return kind == POINTER and value is not None and self._buffer_at(value) is not None

    def _relocated(self, kind: str, value: Any) -> Any:
        """An argument, pointing into the first arena if it points to a recorded tensor."""
        buffer = self._buffer_at(value) if self._is_in_arena(kind, value) else None
        return value if buffer is None else self._memory.data_ptr() + buffer.offset + value - buffer.start

    def _buffer_at(self, pointer: int) -> Buffer | None:
        k = bisect_right(self._starts, pointer) - 1
        return self._buffers[k] if k >= 0 and pointer < self._buffers[k].stop else None


def _typed_arguments(call: KernelCall) -> Iterator[tuple[str, Any]]:
    """The kind and the value of each argument."""
    return zip(call.kinds, call.arguments, strict=True)


def _address(target: Any) -> int | None:
    """The address of a ctypes function, an array, or bytes."""
    return ctypes.cast(target, ctypes.c_void_p).value


def _find_buffers(
    calls: Sequence[KernelCall], tensors: Sequence[Tensor], inputs: Sequence[Tensor], output: Tensor
) -> list[Buffer]:
    """The memory of all tensors, sorted by address, with the calls that use it."""
    # Of the whole storage: a call may point into the middle, for a view of some columns.
    starts = {id(tensor): tensor.untyped_storage().data_ptr() for tensor in tensors}
    buffers = sorted(
        (
            Buffer(starts[id(tensor)], starts[id(tensor)] + tensor.untyped_storage().nbytes(), len(calls), -1)
            for tensor in tensors
        ),
        key=lambda buffer: buffer.start,
    )
    addresses = [buffer.start for buffer in buffers]

    def use(pointer: int, time: int) -> None:
        k = bisect_right(addresses, pointer) - 1
        if k >= 0 and pointer < buffers[k].stop:
            # A buffer is in use from the first call that names it to the last, whether they read or write.
            buffers[k].first_use = min(buffers[k].first_use, time)
            buffers[k].last_use = max(buffers[k].last_use, time)

    # Inputs are there before the first call, and the output is read after the last: neither shares memory with a tensor
    # that is written in between.
    for tensor in inputs:
        use(tensor.data_ptr(), -1)
    for time, call in enumerate(calls):
        for pointer in call.pointers:
            use(pointer, time)
    use(output.data_ptr(), len(calls))
    return buffers


def _assign_offsets(buffers: list[Buffer], images: int) -> int:
    """Give buffers of so many images that are used at the same time disjoint places, the largest first. Returns the
    arena's bytes."""
    placed: list[Buffer] = []
    # First fit, the largest first: buffers whose uses overlap in time must not overlap in memory.
    for buffer in sorted(buffers, key=lambda buffer: -buffer.size(images)):
        buffer.offset = 0
        obstacles = [other for other in placed if other.is_used_with(buffer)]
        for other in sorted(obstacles, key=lambda other: other.offset):
            # The gap before this obstacle is large enough.
            if buffer.offset + buffer.size(images) <= other.offset:
                break
            buffer.offset = max(buffer.offset, other.offset + other.size(images))
        placed.append(buffer)
    return max(buffer.offset + buffer.size(images) for buffer in placed)
