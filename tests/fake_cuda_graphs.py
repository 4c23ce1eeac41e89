"""CUDA graphs and streams on the CPU: a graph records the operations within its context, and replays repeat them.

As on a device, every stream of a recording must be forked from the recording stream and joined to it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class FakeStream:
    """A stream that runs each operation at once, and notes which streams it has waited for."""

    def __init__(self, device: Any = None) -> None:
        self.waited_for: set[FakeStream] = set()

    def wait_stream(self, other: FakeStream) -> None:
        """Note the stream, and those that it has waited for."""
        self.waited_for |= {other} | other.waited_for


class FakeGraph(TorchDispatchMode):
    """As `torch.cuda.CUDAGraph`.

    Attributes:
        replays: How often it has been replayed.
        streams: Those on which operations were recorded.
        pool: Of the memory; None for one of its own.
        is_empty: Whether a replay does nothing, as when the operations went to a stream that is not recorded.
    """

    is_empty = False

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.replays, self.pool = 0, None
        self.streams: set[FakeStream] = set()
        self._device = device
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        self.streams.add(self._device.current)
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the recorded operations, with the same tensors."""
        self.replays += 1
        for func, args, kwargs, out in () if self.is_empty else self._calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class FakeDevice:
    """What `install` puts in the place of CUDA's functions.

    Attributes:
        current: The current stream.
        graphs: All that were made, the first one first.
    """

    def __init__(self) -> None:
        self.current = FakeStream()
        self.graphs: list[FakeGraph] = []

    def make_graph(self) -> FakeGraph:
        """As `torch.cuda.CUDAGraph`."""
        self.graphs.append(FakeGraph(self))
        return self.graphs[-1]

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        """As `torch.cuda.stream`."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def record(self, graph: FakeGraph, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        """As `torch.cuda.graph`."""
        assert capture_error_mode == "thread_local", "another thread's launches would end the recording"
        origin, graph.pool = FakeStream(), pool
        with self.stream(origin), graph:
            yield
        for stream in graph.streams - {origin}:
            if origin not in stream.waited_for:
                raise RuntimeError("the operation is not recorded: its stream was not forked")
            if stream not in origin.waited_for:
                raise RuntimeError("the recording has unjoined work")


def install(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """Replace CUDA's streams and graphs, and the name of the device."""
    device = FakeDevice()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: device.current)
    monkeypatch.setattr(torch.cuda, "stream", device.stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", device.make_graph)
    monkeypatch.setattr(torch.cuda, "graph", device.record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda of: "NVIDIA H100")
    return device
