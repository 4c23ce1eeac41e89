"""A U-Net on a CUDA device as one recorded graph of launches, for batches of one fixed size.

With a small network a GPU waits for Python: 160 launches take 5 ms, and the GPU works for 1.5 of them. Recorded once
(`torch.cuda.CUDAGraph`), they are launched together. A graph has one batch size. Kernels differ from one size to
another, and an image's last bits with them, so there is only one size: larger batches take several runs, smaller ones
are filled up with rows whose output is ignored, and an image has the same bits in any batch. The constructor checks
that on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from denoised.model.backends.numerics import Precision
from denoised.model.backends.precision import DTYPES, arithmetic
from denoised.model.errors import KernelError
from denoised.model.networks.unet.unet import UNet

BUCKET = 64  # images in a run of the graph
WARM_UP = 3  # evaluations before the recording, in which libraries load and choose their kernels
CHECKS = 8  # orders of the rows that the constructor compares


class GraphedUNet(nn.Module):
    """The same function as the `UNet` that it is made from, for inference on a CUDA device. A `Backend`.

    The U-Net stays as it is.

    Attributes:
        bucket: Images in a run of the graph.

    Raises:
        KernelError: if the device cannot record it, or an image's bits depend on its neighbors.
    """

    def __init__(
        self, unet: UNet, shape: tuple[int, int, int], precision: Precision = "float32", bucket: int = BUCKET
    ) -> None:
        """shape: (C, H, W) of the images, the only one that it takes; precision: of convolutions and matrix products:
        see `model.backends.precision`.
        """
        super().__init__()
        self._classes = unet.config.num_class_embeds or 0
        self._takes_labels = unet.class_embedding is not None
        self.bucket = bucket
        self._precision = precision
        self._shape = shape
        device = next(unet.parameters()).device
        self._x = torch.zeros(bucket, *shape, device=device)
        self._t = torch.ones(bucket, device=device)
        self._label = torch.zeros(bucket, dtype=torch.long, device=device)
        try:
            self._unet = in_precision(unet, precision)  # kept alive: the graph reads its weights
            self._graph, self._output = self._recorded(self._unet)
            self._check()
        except RuntimeError as error:
            raise KernelError(f"the network cannot be recorded on {device} ({str(error).splitlines()[0]})") from error

    min_pipelined_images: int | None = None

    def begin(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Callable[[], Tensor]:
        """Launch an evaluation; the device works on it while the host goes on."""
        output = self(x, t, label)
        return lambda: output

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """As `UNet.forward`, for x (B, *shape); not by two threads at a time."""
        assert tuple(x.shape[1:]) == self._shape, (x.shape, self._shape)
        out = x.new_empty(len(x), *self._output.shape[1:])
        for start in range(0, len(x), self.bucket):
            part = slice(start, min(start + self.bucket, len(x)))
            count = part.stop - start
            # The graph reads these addresses. Rows beyond `count` keep what an earlier run left in them.
            self._x[:count].copy_(x[part])
            self._t[:count].copy_(t[part])
            if label is not None:
                self._label[:count].copy_(label[part])
            self._graph.replay()
            out[part].copy_(self._output[:count])
        return out

    @torch.no_grad()
    def _recorded(self, unet: UNet) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of one evaluation of the bucket, and the tensor that it writes its output to."""
        label = self._label if self._takes_labels else None

        def evaluate() -> Tensor:
            return evaluate_in_precision(unet, self._x, self._t, label)

        with arithmetic(self._precision):
            side_stream = torch.cuda.Stream(self._x.device)
            # Warm-up must not run on the default stream (torch.cuda.CUDAGraph), which writes the inputs before.
            side_stream.wait_stream(torch.cuda.current_stream(self._x.device))
            with torch.cuda.stream(side_stream):
                for _ in range(WARM_UP):
                    evaluate()
            torch.cuda.current_stream(self._x.device).wait_stream(side_stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = evaluate()
        return graph, output

    def _check(self) -> None:
        """Check that an image has the same bits in every row of the bucket, next to any others.

        Raises:
            KernelError: if it has not.
        """
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.bucket, *self._shape, generator=generator).to(self._x.device)
        t = torch.linspace(1, 999, self.bucket, device=x.device)
        label = torch.arange(self.bucket, device=x.device) % max(self._classes, 1)
        first = self.forward(x, t, label)
        for _ in range(CHECKS):
            order = torch.randperm(self.bucket, generator=generator).to(x.device)
            again = self.forward(x[order], t[order], label[order])
            alone = self.forward(x[order[:1]], t[order[:1]], label[order[:1]])
            if not (torch.equal(again, first[order]) and torch.equal(alone, first[order[:1]])):
                raise KernelError(f"the bits of an image depend on its neighbors on {x.device}")


def in_precision(unet: UNet, precision: Precision) -> UNet:
    """The network itself, or a copy with layers in a half precision.

    The features of t stay in float32: in bfloat16, Fourier features would be off by whole periods.
    """
    if DTYPES[precision] == torch.float32:
        return unet
    copy = deepcopy(unet).to(DTYPES[precision])
    copy.time_proj = deepcopy(unet.time_proj)
    return copy


def evaluate_in_precision(unet: UNet, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """`UNet.forward` with layers in the type of their weights; what is around them stays in float32."""
    dtype = unet.conv_in.weight.dtype
    x, level = unet.prepare(x, t)
    return unet.finish(unet.evaluate(x.to(dtype), unet.embed(level, label, dtype)).float(), level)
