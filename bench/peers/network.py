"""diffusers' U-Net as the peers call it: on a device, in a precision, as it comes or compiled."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

PRECISIONS = ("float32", "tf32", "bfloat16")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WARM_UP = 3  # calls: the first compiles, the second records the launches, the third runs what was recorded


@dataclass(frozen=True)
class Manner:
    """How a peer evaluates. compiled: by torch.compile, with CUDA graphs on a CUDA device."""

    device: str = "cpu"
    precision: str = "float32"
    compiled: bool = False

    @property
    def without_gradients(self) -> Callable[[], torch.no_grad | torch.inference_mode]:
        """What evaluations run under; inference tensors and recorded launches do not go together in every torch."""
        return torch.no_grad if self.compiled else torch.inference_mode


def parsed(*places: str) -> tuple[Namespace, Manner]:
    """A peer's command line: where things are, by position, and how it evaluates."""
    parser = ArgumentParser()
    for place in places:
        parser.add_argument(place)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    return given, Manner(given.device, given.precision, given.compile)


class Network(nn.Module):
    """x (B, C, H, W) float32, t (B,), labels (B,) → (B, C, H, W) float32, in the manner's precision between."""

    def __init__(self, folder: str | Path, manner: Manner, layout: str = "contiguous") -> None:
        super().__init__()
        torch.backends.cudnn.allow_tf32 = manner.precision == "tf32"
        torch.set_float32_matmul_precision("high" if manner.precision == "tf32" else "highest")
        self.dtype = torch.bfloat16 if manner.precision == "bfloat16" else torch.float32
        unet = UNet2DModel.from_pretrained(
            folder, subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=self.dtype
        )
        self.unet = unet.eval().requires_grad_(False).to(manner.device).to(memory_format=FORMATS[layout])
        self.config = self.unet.config
        self.layout = FORMATS[layout]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        given = x.to(self.dtype, memory_format=self.layout)
        output: Tensor = self.unet(given, t, class_labels=labels, return_dict=False)[0]
        return output.float()


class Compiled:
    """The same for a few batch sizes, each compiled when this is made: any other is filled up to the next of them.

    Recorded launches belong to the thread that recorded them: make it and call it in one thread.
    """

    def __init__(self, network: Network, sizes: Sequence[int], device: str) -> None:
        self.config = network.config
        self.sizes = sorted(sizes)
        self._run = torch.compile(network, mode="reduce-overhead", dynamic=False)
        shape = (self.config.in_channels, self.config.sample_size, self.config.sample_size)
        for size in self.sizes:
            x = torch.zeros(size, *shape, device=device)
            t, labels = (torch.zeros(size, dtype=torch.long, device=device) for _ in range(2))
            for _ in range(WARM_UP):
                self(x, t, labels)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """As `Network`, for no more images than the largest size; what it returns lasts until the next call."""
        images = len(x)
        size = next(size for size in self.sizes if size >= images)
        torch.compiler.cudagraph_mark_step_begin()
        return self._run(_filled(x, size), _filled(t, size), _filled(labels, size))[:images]


def network(folder: str | Path, manner: Manner, sizes: Sequence[int]) -> Network | Compiled:
    """diffusers' network; where it is compiled, for these batch sizes. Call it without gradients."""
    made = Network(folder, manner)
    if not manner.compiled:
        return made
    with manner.without_gradients():
        return Compiled(made, sizes, manner.device)


def _filled(rows: Tensor, size: int) -> Tensor:
    """(B, …) with rows of zeros up to (size, …)."""
    missing = size - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
