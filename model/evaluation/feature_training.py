"""Training the feature network: a classifier, a few minutes on a CPU, the same from the same seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from denoised.model.errors import TrainingError
from denoised.model.evaluation.features import WIDTHS, FeatureCard, FeatureNetwork, FeatureSpace
from denoised.model.training.data import Dataset, holds_idx, load_dataset

HELD_OUT = 10  # one picture in so many, where the data have no test split


@dataclass(frozen=True)
class FeatureTraining:
    """Everything that decides the network's numbers. shift: pixels that a picture is moved at most."""

    epochs: int = 12
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    shift: int = 1
    flip: bool = False
    seed: int = 0
    precision: str = "float32"  # or "bfloat16"

    def steps(self, images: int) -> int:
        """Optimiser steps in all; a last part of an epoch that fills no batch is left out."""
        return self.epochs * (images // self.batch)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate: linear warm-up over a tenth of the steps, then half a cosine to zero."""
        warm = min(1.0, (step + 1) / max(0.1 * steps, 1))
        return self.learning_rate * warm * (1 + math.cos(math.pi * step / steps)) / 2


def train_features(
    data: Dataset, test: Dataset, config: FeatureTraining, report: Callable[[int, int, float], None] = lambda *_: None
) -> FeatureSpace:
    """A feature network for `data`, its accuracy measured on `test` when it is finished, once.

    report: called with (step, steps, loss) after each step.

    Raises:
        TrainingError: when there are too few images or classes.
    """
    steps = config.steps(len(data))
    if not steps:
        raise TrainingError(f"{len(data)} images fill no batch: --batch may be {len(data)} at most")
    if len(data.labels) < 2:
        raise TrainingError(f"{data.source} has {len(data.labels)} class: features come of telling at least 2 apart")
    network = _trained(data, config, steps, report)
    card = FeatureCard(
        labels=list(data.labels),
        image_shape=(data.images.shape[1], data.images.shape[2], data.images.shape[3]),
        widths=list(WIDTHS),
        test_accuracy=0.0,
        test_images=len(test),
        data=f"{data.source}, {len(data):,} training images, {len(test):,} test images",
        training=dataclasses.asdict(config),
    )
    accuracy = FeatureSpace(network, card).accuracy(test.images, test.classes)
    return FeatureSpace(network, card.model_copy(update={"test_accuracy": accuracy}))


def _trained(
    data: Dataset, config: FeatureTraining, steps: int, report: Callable[[int, int, float], None]
) -> FeatureNetwork:
    torch.manual_seed(config.seed)
    network = FeatureNetwork(data.images.shape[1], len(data.labels)).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster to train
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(config.seed)
    for step, index in enumerate(_batches(len(data), config, generator)):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step, steps)
        pictures = augmented(data.images[index], config, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            _, logits = network(pictures)
        loss = F.cross_entropy(logits.float(), data.classes[index], label_smoothing=config.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report(step + 1, steps, float(loss.detach()))
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as it is read again
    return network


def augmented(pictures: Tensor, config: FeatureTraining, generator: torch.Generator) -> Tensor:
    """pictures: (B, C, H, W) uint8. Half of them mirrored (`flip`), the whole batch moved by up to `shift` pixels."""
    if config.flip:
        mirrored = torch.rand(len(pictures), generator=generator) < 0.5
        pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
    if config.shift:
        height, width = pictures.shape[2:]
        s = config.shift
        padded = F.pad(pictures, (s, s, s, s))
        down, right = (int(torch.randint(2 * s + 1, (), generator=generator)) for _ in range(2))
        pictures = padded[:, :, down : down + height, right : right + width]
    return pictures


def _batches(count: int, config: FeatureTraining, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(config.epochs):
        order = torch.randperm(count, generator=generator)
        yield from order[: count // config.batch * config.batch].split(config.batch)


def splits(folder: Path, size: int) -> tuple[Dataset, Dataset]:
    """(training data, test data): the two splits of IDX files; of a folder of images, every tenth is held out.

    Raises:
        DataError: when there is no data set, or it is broken.
    """
    if holds_idx(folder):
        return load_dataset(folder, size), load_dataset(folder, size, split="test")
    whole = load_dataset(folder, size)
    mixed = shuffled(whole, seed=0)
    held_out = max(1, len(whole) // HELD_OUT)
    return _part(mixed, slice(held_out, None)), _part(mixed, slice(held_out))


def shuffled(data: Dataset, seed: int, count: int | None = None) -> Dataset:
    """The images in an order that the seed decides; the first `count` of them."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return _part(data, order[:count])


def _part(data: Dataset, index: Tensor | slice) -> Dataset:
    return dataclasses.replace(data, images=data.images[index], classes=data.classes[index])
