"""diffusers' U-Net as the peers call it: on a device, in a precision, eager or compiled."""

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
class NetworkOptions:
    """How a peer evaluates its network. compiled: by torch.compile, with CUDA graphs on a CUDA device."""

    device: str = "cpu"
    precision: str = "float32"
    compiled: bool = False

    @property
    def without_gradients(self) -> Callable[[], torch.no_grad | torch.inference_mode]:
        """The context for evaluations. CUDA graphs do not work with inference tensors in every version of torch."""
        return torch.no_grad if self.compiled else torch.inference_mode


def parse_arguments(*positional: str) -> tuple[Namespace, NetworkOptions]:
    """Parse a peer's command line: its positional arguments, and the options of its network."""
    parser = ArgumentParser()
    for name in positional:
        parser.add_argument(name)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    return arguments, NetworkOptions(arguments.device, arguments.precision, arguments.compile)


class Network(nn.Module):
    """x (B, C, H, W) float32, t (B,), labels (B,) → (B, C, H, W) float32; computes in the precision of the options."""

    def __init__(self, folder: str | Path, options: NetworkOptions, layout: str = "contiguous") -> None:
        super().__init__()
        torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
        torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
        self.dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        unet = UNet2DModel.from_pretrained(
            folder, subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=self.dtype
        )
        self.unet = unet.eval().requires_grad_(False).to(options.device).to(memory_format=FORMATS[layout])
        self.config = self.unet.config
        self.layout = FORMATS[layout]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        x = x.to(self.dtype, memory_format=self.layout)
        output: Tensor = self.unet(x, t, class_labels=labels, return_dict=False)[0]
        return output.float()


class CompiledNetwork:
    """A network compiled for a few batch sizes; other batches are padded to the next of these sizes.

    CUDA graphs belong to the thread that recorded them: construct it and call it in one thread.
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
        """As `Network`, for at most as many images as the largest size. The output is overwritten by the next call."""
        images = len(x)
        size = next(size for size in self.sizes if size >= images)
        torch.compiler.cudagraph_mark_step_begin()
        return self._run(_pad(x, size), _pad(t, size), _pad(labels, size))[:images]


def load_network(folder: str | Path, options: NetworkOptions, sizes: Sequence[int]) -> Network | CompiledNetwork:
    """Load diffusers' network, compiled for these batch sizes if the options say so. Call it without gradients."""
    network = Network(folder, options)
    if not options.compiled:
        return network
    with options.without_gradients():
        return CompiledNetwork(network, sizes, options.device)


def _pad(rows: Tensor, size: int) -> Tensor:
    """Pad (B, …) with rows of zeros to (size, …)."""
    missing = size - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
