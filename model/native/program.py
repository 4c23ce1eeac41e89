"""A network's kernels as a list of calls on memory of their own, to be made again without its modules.

At small batches Python between two kernels takes as long as the kernels. So what a network calls is
recorded once, and from then on only the calls are made: the batch is the first argument of every kernel,
and all tensors have it outermost, so a smaller batch is their beginning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.native.kernels import POINTER, Call

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


class Program:
    """Calls that were recorded, with tensors that are in use at different times in one place.

    made: the tensors that the recorded calls were given to write into, and the inputs; output: what they
    left, or a view of it. Not for two threads at a time.
    """

    def __init__(self, calls: Sequence[Call], made: Sequence[Tensor], inputs: Sequence[Tensor], output: Tensor) -> None:
        self._spans = _spans(calls, made, inputs, output)
        self._starts = [span.start for span in self._spans]
        self._memory = torch.empty(_place(self._spans) // 4)
        self._calls = [
            (
                call.kernel,
                tuple(self._moved(kind, value) for kind, value in call.arguments_by_kind),
            )
            for call in calls
        ]
        self._inputs = [self._like(tensor) for tensor in inputs]
        self._output = self._like(output)
        self.batch = len(output)

    def run(self, *inputs: Tensor) -> Tensor:
        """inputs: in the order of the recording's, for as many images as were recorded or fewer."""
        batch = len(inputs[0])
        for mine, theirs in zip(self._inputs, inputs, strict=True):
            mine[:batch].copy_(theirs)
        for kernel, arguments in self._calls:
            kernel(batch, *arguments)
        return self._output[:batch].clone()

    def _moved(self, kind: Any, value: Any) -> Any:
        """Where a pointer into the recording's memory points here; all else as it is."""
        if kind is not POINTER or value is None:
            return value
        span = self._span(value)
        return value if span is None else self._memory.data_ptr() + span.offset + value - span.start

    def _span(self, pointer: int) -> Span | None:
        k = bisect_right(self._starts, pointer) - 1
        return self._spans[k] if k >= 0 and pointer < self._spans[k].stop else None

    def _like(self, tensor: Tensor) -> Tensor:
        """The tensor that has this one's place here."""
        moved = self._moved(POINTER, tensor.data_ptr()) - self._memory.data_ptr()
        return self._memory.as_strided(tensor.shape, tensor.stride(), moved // 4)


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
        for kind, value in call.arguments_by_kind:
            if kind is POINTER and value is not None:
                use(value, time)
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
