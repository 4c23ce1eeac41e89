"""Peer (c): a bare loop over diffusers' U-Net, at the batch size and memory format that are fastest; no server.

It says what it chose as one JSON line. Then, for each number of seconds on its standard input, it evaluates for so
long and says how many evaluations that were, one an image, and how long it took.

python -m bench.peers.bare FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from diffusers import UNet2DModel

SIZES = (1, 2, 4, 8, 16, 32)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TRIES = 7


def evaluation(folder: str, images: int, layout: str) -> Callable[[], object]:
    """One call of the network on a batch of noise."""
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False).eval()
    unet = unet.to(memory_format=FORMATS[layout])
    config = unet.config
    x = torch.randn(images, config.in_channels, config.sample_size, config.sample_size)
    x = x.to(memory_format=FORMATS[layout])
    t, labels = torch.tensor(500), torch.arange(images) % config.num_class_embeds
    return lambda: unet(x, t, class_labels=labels).sample


def seconds_of(evaluate: Callable[[], object]) -> float:
    """The median of some tries, without the first, in which libraries load their kernels."""
    evaluate()
    taken = []
    for _ in range(TRIES):
        began = time.perf_counter()
        evaluate()
        taken.append(time.perf_counter() - began)
    return median(taken)


@torch.inference_mode()
def main(folder: str) -> None:
    choices = [(images, layout) for images in SIZES for layout in FORMATS]
    images, layout = max(choices, key=lambda choice: choice[0] / seconds_of(evaluation(folder, *choice)))
    evaluate = evaluation(folder, images, layout)
    say({"images": images, "format": layout})
    for line in sys.stdin:
        began, count = time.perf_counter(), 0
        while (taken := time.perf_counter() - began) < float(line):
            evaluate()
            count += images
        say({"evaluations": count, "seconds": taken})


def say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
