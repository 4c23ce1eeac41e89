"""Peer (c): a bare loop over diffusers' U-Net, at the batch size and memory format that are fastest; no server.

It says what it chose as one JSON line. Then, for each number of seconds on its standard input, it evaluates for so
long and says how many evaluations that were, one an image, and how long it took.

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

from bench.peers.network import FORMATS, Compiled, Manner, Network, parsed

SIZES = (1, 2, 4, 8, 16, 32)
GPU_SIZES = (16, 64, 256)
TRIES = 7
AHEAD = 8  # evaluations for which a GPU is not waited for


def choices(manner: Manner) -> list[tuple[int, str]]:
    """Batch sizes and memory formats that are tried. Compiled it is for the largest alone: each takes a quarter of a
    minute, and torch lays tensors out itself then.
    """
    sizes = SIZES if manner.device == "cpu" else GPU_SIZES
    if manner.compiled:
        return [(sizes[-1], "contiguous")]
    return [(images, layout) for images in sizes for layout in FORMATS]


def evaluation(folder: str, images: int, layout: str, manner: Manner) -> Callable[[], Tensor]:
    """One call of the network on a batch of noise."""
    network = Network(folder, manner, layout)
    config, device = network.config, manner.device
    evaluate = Compiled(network, [images], device) if manner.compiled else network
    x = torch.randn(images, config.in_channels, config.sample_size, config.sample_size, device=device)
    x = x.to(memory_format=FORMATS[layout])
    t, labels = torch.full((images,), 500, device=device), torch.arange(images, device=device) % config.num_class_embeds
    return lambda: evaluate(x, t, labels)


def seconds_of(evaluate: Callable[[], Tensor], wait: Callable[[], None]) -> float:
    """The median of some tries, without the first, in which libraries load their kernels."""
    evaluate()
    taken = []
    for _ in range(TRIES):
        wait()
        began = time.perf_counter()
        evaluate()
        wait()
        taken.append(time.perf_counter() - began)
    return median(taken)


def main(folder: str, manner: Manner) -> None:
    on_gpu = manner.device != "cpu"
    wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else _go_on
    with manner.without_gradients():
        evaluate, images, layout = fastest(folder, manner, wait)
        say({"images": images, "format": layout})
        for line in sys.stdin:
            loop(evaluate, images, float(line), AHEAD if on_gpu else 1, wait)


def fastest(folder: str, manner: Manner, wait: Callable[[], None]) -> tuple[Callable[[], Tensor], int, str]:
    """The evaluation that makes most images a second, its batch size and its memory format."""
    tried = {choice: evaluation(folder, *choice, manner) for choice in choices(manner)}
    images, layout = max(tried, key=lambda choice: choice[0] / seconds_of(tried[choice], wait))
    return tried[images, layout], images, layout


def loop(evaluate: Callable[[], Tensor], images: int, seconds: float, ahead: int, wait: Callable[[], None]) -> None:
    """Evaluate for so long, and say what was done."""
    began, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds:
        for _ in range(ahead):
            evaluate()
        wait()
        count += ahead * images
    say({"evaluations": count, "seconds": taken})


def say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _go_on() -> None:
    """A CPU has done what it was told when a call returns."""


if __name__ == "__main__":
    given, how = parsed("folder")
    main(given.folder, how)
