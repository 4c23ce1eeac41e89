"""A network's kernels as a list of calls on memory of their own, to be made again without its modules.

At small batches Python between two kernels takes as long as the kernels. So what a network calls for one
image is recorded once, and from then on one C function makes the calls for every image of a batch
(thread_pool.c), each thread in memory of its own.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from denoised.model.backends.native.kernels import POINTER, Call, argument_list
from denoised.model.backends.native.thread_pool import Call as NativeCall
from denoised.model.backends.native.thread_pool import Evaluation, IoBinding, Runner

ALIGNMENT = 256  # bytes; of every tensor in the program's memory


@dataclass
class Span:
    """Memory of a recording: bytes start … stop, used by calls first … last; -1 is before all of them."""

    start: int
    stop: int
    first: int
    last: int
    offset: int = field(default=0)

    @property
    def size(self) -> int:
        return -(-(self.stop - self.start) // ALIGNMENT) * ALIGNMENT

    def beside(self, other: Span) -> bool:
        """Whether both are in use at some time."""
        return self.first <= other.last and other.first <= self.last


class RecordedGraph:
    """Calls that were recorded for one image, with tensors that are in use at different times in one place.

    made: the tensors that the recorded calls were given to write into, and the inputs; output: what they left, or the
    first of its channels. Not for two threads at a time, though one may begin several evaluations.
    """

    def __init__(
        self, runner: Runner, calls: Sequence[Call], made: Sequence[Tensor], inputs: Sequence[Tensor], output: Tensor
    ) -> None:
        self._runner = runner
        self._recorded = calls
        self._spans = _spans(calls, made, inputs, output)
        self._starts = [span.start for span in self._spans]
        self._arena = _place(self._spans)
        self._inputs, self._output = inputs, output
        self._lay_out(torch.get_num_threads())

    def run(self, *inputs: Tensor) -> Tensor:
        """inputs: in the order of the recording's, (B, …) each, laid out in memory as those."""
        threads = torch.get_num_threads()
        evaluation, _, output = self._evaluation(inputs, threads, first=0)
        self._runner.run(evaluation, threads)
        return output

    def begin(self, *inputs: Tensor) -> Callable[[], Tensor]:
        """The same, by the process's crew; what is returned waits for it."""
        threads = torch.get_num_threads()
        evaluation, kept, output = self._evaluation(inputs, threads, first=threads)
        flight = self._runner.crew(threads).begin(evaluation, kept)

        def result() -> Tensor:
            flight.wait()
            return output

        return result

    def _evaluation(self, inputs: Sequence[Tensor], threads: int, first: int) -> tuple[Evaluation, Any, Tensor]:
        """One of these inputs, in the memory of so many threads from the first on; what has to be kept for it, and
        where it is found when it is made."""
        if threads > self._threads:
            self._lay_out(threads)
        images = len(inputs[0])
        _, channels, height, width = self._output.shape
        whole = torch.empty(images, height, width, self._out.bytes // (4 * height * width))
        ports = (IoBinding * len(inputs))(
            *(
                IoBinding(tensor.data_ptr(), port.inside, port.bytes)
                for tensor, port in zip(inputs, self._in, strict=True)
            )
        )
        evaluation = Evaluation(
            calls=ctypes.addressof(self._calls),
            count=len(self._calls),
            inputs=ctypes.addressof(ports),
            input_count=len(ports),
            output=IoBinding(whole.data_ptr(), self._out.inside, self._out.bytes),
            images=images,
            first=first,
            arena=self._arena,
        )
        kept = (inputs, ports, whole, self._memory, self._lists, self._inside, self._calls)
        return evaluation, kept, whole[..., :channels].permute(0, 3, 1, 2)

    def _lay_out(self, threads: int) -> None:
        """Memory for so many threads that run, and as many that fly; the calls with pointers into that of the first."""
        self._threads = threads
        self._memory = torch.empty(2 * threads * self._arena // 4)
        self._lists = [
            argument_list(call.kinds, [self._moved(*each) for each in _given(call)]) for call in self._recorded
        ]
        self._inside = [bytes(self._is_inside(*each) for each in _given(call)) for call in self._recorded]
        self._calls = (NativeCall * len(self._recorded))(
            *(
                NativeCall(_address(call.kernel), _address(given), _address(inside), len(given))
                for call, given, inside in zip(self._recorded, self._lists, self._inside, strict=True)
            )
        )
        self._in = [self._port(tensor) for tensor in self._inputs]
        self._out = self._port(self._output)

    def _port(self, tensor: Tensor) -> IoBinding:
        """Where the tensor of which this one is a view, or itself, lies in the first thread's memory."""
        span = self._span(tensor.data_ptr())
        assert span is not None
        return IoBinding(None, self._memory.data_ptr() + span.offset, span.stop - span.start)

    def _is_inside(self, kind: str, value: Any) -> bool:
        """Whether an argument points into the recording's memory."""
        return kind == POINTER and value is not None and self._span(value) is not None

    def _moved(self, kind: str, value: Any) -> Any:
        """Where such a pointer points here; all else as it is."""
        span = self._span(value) if self._is_inside(kind, value) else None
        return value if span is None else self._memory.data_ptr() + span.offset + value - span.start

    def _span(self, pointer: int) -> Span | None:
        k = bisect_right(self._starts, pointer) - 1
        return self._spans[k] if k >= 0 and pointer < self._spans[k].stop else None


def _given(call: Call) -> Iterator[tuple[str, Any]]:
    """Kind and value of each argument."""
    return zip(call.kinds, call.arguments, strict=True)


def _address(made: Any) -> int | None:
    """Of a ctypes function, an array, or bytes."""
    return ctypes.cast(made, ctypes.c_void_p).value


def _spans(calls: Sequence[Call], made: Sequence[Tensor], inputs: Sequence[Tensor], output: Tensor) -> list[Span]:
    """The memory of all tensors, by address, with its times."""
    starts = {id(tensor): tensor.untyped_storage().data_ptr() for tensor in made}
    spans = sorted(
        (
            Span(starts[id(tensor)], starts[id(tensor)] + tensor.untyped_storage().nbytes(), len(calls), -1)
            for tensor in made
        ),
        key=lambda span: span.start,
    )
    addresses = [span.start for span in spans]

    def use(pointer: int, time: int) -> None:
        k = bisect_right(addresses, pointer) - 1
        if k >= 0 and pointer < spans[k].stop:
            spans[k].first, spans[k].last = min(spans[k].first, time), max(spans[k].last, time)

    for tensor in inputs:
        use(tensor.data_ptr(), -1)
    for time, call in enumerate(calls):
        for pointer in call.pointers:
            use(pointer, time)
    use(output.data_ptr(), len(calls))
    return spans


def _place(spans: list[Span]) -> int:
    """Give each an offset such that none lies on another that is in use with it; returns the bytes needed."""
    placed: list[Span] = []
    for span in sorted(spans, key=lambda span: -span.size):
        span.offset = 0
        for other in sorted((other for other in placed if other.beside(span)), key=lambda other: other.offset):
            if span.offset + span.size <= other.offset:
                break
            span.offset = max(span.offset, other.offset + other.size)
        placed.append(span)
    return max(span.offset + span.size for span in placed)
