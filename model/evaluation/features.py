"""The feature network: the space in which images are compared, and the classifier that names their class.

A small residual classifier. Its features are the input of its last layer, averaged over the
image, as with Inception in the FID of Heusel et al. 2017 (arXiv:1706.08500). Scores in one
feature space cannot be compared with scores in another. A folder holds

    features.json            `FeatureCard`: labels, image shape, widths, test accuracy
    features.safetensors     the weights

The network takes bytes, never floats, so that generated and real images are rounded alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.atomic import write_atomically, write_text_atomically
from denoised.model.checkpoints.card_file import invalid_card
from denoised.model.checkpoints.weights import read_weights
from denoised.model.errors import CheckpointError
from denoised.model.serving.loading import ZOO
from denoised.model.training.datasets.dataset import to_unit

CARD = "features.json"
WEIGHTS = "features.safetensors"
FASHION_FEATURES = ZOO / "fashion-mnist-features"
WIDTHS = (32, 64, 128)
BATCH = 250  # images per evaluation of the feature network


class FeatureCard(BaseModel):
    """`features.json`: the network's shape, and its accuracy on images it was not trained on."""

    model_config = ConfigDict(extra="forbid")

    labels: list[str] = Field(min_length=2)
    image_shape: tuple[int, int, int]
    widths: list[int] = Field(min_length=1)
    test_accuracy: float = Field(ge=0, le=1)
    test_images: int = Field(ge=1)
    data: str = ""
    training: dict[str, Any] = {}


class FeatureNetwork(nn.Module):
    """One residual block per width, each halving the sides of the image; widths[-1] features."""

    def __init__(self, channels: int, classes: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]))
        inputs = (widths[0], *widths[:-1])
        self.blocks = nn.ModuleList(ResidualBlock(*pair) for pair in zip(inputs, widths, strict=True))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, C, H, W) uint8. Returns features (B, d) and logits (B, K)."""
        # (B, widths[0], H, W); each block halves height and width.
        x = F.relu(self.stem(to_unit(images)))
        for block in self.blocks:
            x = block(x)
        # (B, widths[−1], h, w) → (B, widths[−1])
        features = x.mean(dim=(2, 3))
        return features, self.head(features)


class ResidualBlock(nn.Module):
    """Two convolutions with a projection shortcut, halving the sides (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


@dataclass(frozen=True)
class Features:
    """The network's outputs for N images.

    values: (N, d) float32 features.
    classes: (N,) int64, the most likely class of each image.
    """

    values: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def first(self, count: int) -> Features:
        """The features of the first `count` images."""
        return Features(self.values[:count], self.classes[:count])


class FeatureSpace:
    """A trained feature network with its card."""

    def __init__(self, network: FeatureNetwork, card: FeatureCard) -> None:
        self.network = network.eval().requires_grad_(False)
        self.card = card

    @torch.inference_mode()
    def extract(self, images: Tensor) -> Features:
        """images: (N, C, H, W) uint8 of the card's shape.

        Raises:
            CheckpointError: for images of another shape.
        """
        if tuple(images.shape[1:]) != self.card.image_shape:
            raise CheckpointError(
                f"the feature network takes images of (C, H, W) = {self.card.image_shape}, "
                f"not of {tuple(images.shape[1:])}: train one for these with denoised train-features"
            )
        device = next(self.network.parameters()).device
        parts = [self.network(part.to(device)) for part in images.split(BATCH)]
        return Features(
            torch.cat([features.float().cpu() for features, _ in parts]),
            torch.cat([logits.argmax(dim=1).cpu() for _, logits in parts]),
        )

    def accuracy(self, images: Tensor, classes: Tensor) -> float:
        """The fraction of images (N, C, H, W) whose most likely class is the one in `classes` (N,)."""
        return float((self.extract(images).classes == classes).double().mean())


def load_features(folder: Path, device: str = "cpu") -> FeatureSpace:
    """Load the feature space in a folder.

    Raises:
        CheckpointError: names the file, the key and the cause in one line.
    """
    card = _read_card(folder / CARD)
    with torch.device("meta"):
        network = FeatureNetwork(card.image_shape[0], len(card.labels), card.widths)
    network.load_state_dict(read_weights(folder / WEIGHTS, network.state_dict()), assign=True)
    return FeatureSpace(network.to(device), card)


def save_features(folder: Path, space: FeatureSpace) -> None:
    """Write a folder. Each file is written atomically, the card last."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in space.network.state_dict().items()}
    write_atomically(folder / WEIGHTS, lambda path: save_file(weights, path, metadata={"format": "pt"}))
    write_text_atomically(folder / CARD, space.card.model_dump_json(indent=2) + "\n")


def _read_card(path: Path) -> FeatureCard:
    try:
        return FeatureCard.model_validate(read_json(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}: name a folder written by denoised train-features") from error
    except ValidationError as error:
        raise invalid_card(path, error, FeatureCard) from error
