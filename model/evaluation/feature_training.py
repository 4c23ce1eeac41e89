"""Training the feature network: a classifier that takes a few minutes on a CPU and is reproducible from its seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from denoised.model.errors import TrainingError
from denoised.model.evaluation.features import WIDTHS, FeatureCard, FeatureNetwork, FeatureSpace
from denoised.model.training.datasets.dataset import Dataset


@dataclass(frozen=True)
class FeatureTraining:
    """Everything that determines the numbers of the network.

    shift: largest random shift of a batch in each direction, in pixels.
    flip: mirror half of the images.
    precision: "float32" or "bfloat16".
    """

    epochs: int = 12
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    shift: int = 1
    flip: bool = False
    seed: int = 0
    precision: str = "float32"

    def steps(self, images: int) -> int:
        """Total number of optimizer steps; the incomplete last batch of an epoch is dropped."""
        return self.epochs * (images // self.batch)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate: linear warm-up over a tenth of the steps, then half a cosine down to zero."""
        warmup = min(1.0, (step + 1) / max(0.1 * steps, 1))
        return self.learning_rate * warmup * (1 + math.cos(math.pi * step / steps)) / 2


def train_feature_network(
    data: Dataset, test: Dataset, config: FeatureTraining, report: Callable[[int, int, float], None] = lambda *_: None
) -> FeatureSpace:
    """Train a feature network on `data`; its accuracy on `test` is measured once, after the last step.

    report: called with (step, steps, loss) after each step.

    Raises:
        TrainingError: if there are too few images or classes.
    """
    steps = config.steps(len(data))
    if not steps:
        raise TrainingError(f"{len(data)} images do not fill a batch: --batch may be at most {len(data)}")
    if len(data.labels) < 2:
        raise TrainingError(
            f"{data.source} has {len(data.labels)} class: a feature network needs at least 2 to distinguish"
        )
    network = _train_network(data, config, steps, report)
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


def _train_network(
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
        images = augment(data.images[index], config, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            _, logits = network(images)
        # In float32: the logarithm of a softmax in bfloat16 would have two digits.
        loss = F.cross_entropy(logits.float(), data.classes[index], label_smoothing=config.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report(step + 1, steps, float(loss.detach()))
    # The layout that the network has when it is loaded from its folder.
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network


def augment(images: Tensor, config: FeatureTraining, generator: torch.Generator) -> Tensor:
    """Mirror half of the images (`flip`) and move the whole batch by up to `shift` pixels: (B, C, H, W) uint8."""
    if config.flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if config.shift:
        height, width = images.shape[2:]
        s = config.shift
        padded = F.pad(images, (s, s, s, s))
        down, right = (int(torch.randint(2 * s + 1, (), generator=generator)) for _ in range(2))
        images = padded[:, :, down : down + height, right : right + width]
    return images


def _batches(count: int, config: FeatureTraining, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(config.epochs):
        # Whole batches only: the images of the rest come in other epochs.
        order = torch.randperm(count, generator=generator)
        yield from order[: count // config.batch * config.batch].split(config.batch)
