"""Record the kernels that a network calls for one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from denoised.model.backends.native.kernels import Kernels
from denoised.model.backends.native.layers import channels_last
from denoised.model.backends.native.recorded_graph import RecordedGraph


def record_graph(
    kernels: Kernels, evaluate: Callable[..., Tensor], example: Sequence[Tensor], chunk: int = 1
) -> RecordedGraph | None:
    """Record `evaluate`; None if it does more than call kernels.

    example: inputs of one image: x (1, C, H, W) with its channels last in memory, then rows (1, …) of conditioning;
    chunk: as `RecordedGraph` takes it.
    """
    with kernels.recording() as (calls, results):
        x = kernels.empty(*example[0].shape)
        rows = [torch.empty_like(each) for each in example[1:]]
        inputs = [x, *rows]
        for tensor, value in zip(inputs, example, strict=True):
            tensor.copy_(value)
        output = evaluate(*inputs)
        # The output is not the result of a kernel, so PyTorch made it, and a replay would not write it.
        if _storage(output) not in {_storage(tensor) for tensor in results}:
            return None
        graph = RecordedGraph(kernels.runner, calls, [*results, *rows], inputs, output, chunk)
    # Anything else that the network did is missing in the graph, so that other inputs give another output.
    # Two images unlike the recorded one: constants that were recorded in place of values differ.
    x = channels_last(torch.linspace(-1, 1, 2 * x.numel()).view(2, *x.shape[1:]))
    rows = [torch.cat([each / 2, each / 3]) for each in example[1:]]
    return graph if torch.equal(graph.run(x, *rows), evaluate(x, *rows)) else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
