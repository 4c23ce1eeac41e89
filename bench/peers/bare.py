"""Peer (c): a bare loop over diffusers' U-Net, without a server, at the fastest batch size and memory format.

It prints its choice as one JSON line. Then, for each number of seconds on its standard input, it runs for so long and
prints the number of evaluations, counted per image, and the exact time.

python -m bench.peers.bare FOLDER [--device cuda] [--precision bfloat16] [--compile]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from bench.peers.network import FORMATS, CompiledNetwork, Network, NetworkOptions, parse_arguments

SIZES = (1, 2, 4, 8, 16, 32)
GPU_SIZES = (16, 64, 256)
TRIES = 7
AHEAD = 8  # evaluations to launch before waiting for a GPU


def candidates(options: NetworkOptions) -> list[tuple[int, str]]:
    """The batch sizes and memory formats to try.

    With compilation, only the largest batch: each takes a quarter of a minute to compile, and torch then chooses the
    layout of tensors itself.
    """
    sizes = SIZES if options.device == "cpu" else GPU_SIZES
    if options.compiled:
        return [(sizes[-1], "contiguous")]
    return [(images, layout) for images in sizes for layout in FORMATS]


def prepare_evaluation(folder: str, images: int, layout: str, options: NetworkOptions) -> Callable[[], Tensor]:
    """A function that evaluates the network on a batch of noise."""
    network = Network(folder, options, layout)
    config, device = network.config, options.device
    evaluate = CompiledNetwork(network, [images], device) if options.compiled else network
    x = torch.randn(images, config.in_channels, config.sample_size, config.sample_size, device=device)
    x = x.to(memory_format=FORMATS[layout])
    t, labels = torch.full((images,), 500, device=device), torch.arange(images, device=device) % config.num_class_embeds
    return lambda: evaluate(x, t, labels)


def median_seconds(evaluate: Callable[[], Tensor], synchronize: Callable[[], None]) -> float:
    """The median time of an evaluation, without the first, in which libraries load their kernels."""
    evaluate()
    times = []
    for _ in range(TRIES):
        synchronize()
        began = time.perf_counter()
        evaluate()
        synchronize()
        times.append(time.perf_counter() - began)
    return median(times)


def main(folder: str, options: NetworkOptions) -> None:
    on_gpu = options.device != "cpu"
    synchronize: Callable[[], None] = torch.cuda.synchronize if on_gpu else _no_wait
    with options.without_gradients():
        evaluate, images, layout = fastest(folder, options, synchronize)
        report({"images": images, "format": layout})
        for line in sys.stdin:
            run_loop(evaluate, images, float(line), AHEAD if on_gpu else 1, synchronize)


def fastest(
    folder: str, options: NetworkOptions, synchronize: Callable[[], None]
) -> tuple[Callable[[], Tensor], int, str]:
    """The evaluation with the most images per second, its batch size and its memory format."""
    tried = {choice: prepare_evaluation(folder, *choice, options) for choice in candidates(options)}
    images, layout = max(tried, key=lambda choice: choice[0] / median_seconds(tried[choice], synchronize))
    return tried[images, layout], images, layout


def run_loop(
    evaluate: Callable[[], Tensor], images: int, seconds: float, ahead: int, synchronize: Callable[[], None]
) -> None:
    """Evaluate for so long, and print how many evaluations were done."""
    began, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds:
        for _ in range(ahead):
            evaluate()
        synchronize()
        count += ahead * images
    report({"evaluations": count, "seconds": taken})


def report(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _no_wait() -> None:
    """A CPU has finished its work when a call returns."""


if __name__ == "__main__":
    arguments, options = parse_arguments("folder")
    main(arguments.folder, options)
