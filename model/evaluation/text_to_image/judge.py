"""The judge: a network that names the object, the style and the background color of a picture of an emoji.

It is trained on the real drawings, including those that the text-to-image model never sees, so that it can tell whether
the model drew what a caption asks for. Its features are those that come before the three answers; pictures are compared
in them. A folder holds

    judge.json            `JudgeCard`: the names that it knows, how it was trained
    judge.safetensors     the weights
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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
from denoised.model.evaluation.features import ResidualBlock

CARD, WEIGHTS = "judge.json", "judge.safetensors"
WIDTHS = (32, 64, 128, 256)
BATCH = 256  # pictures per evaluation
ASPECTS = ("object", "style", "background")


class JudgeCard(BaseModel):
    """`judge.json`.

    Attributes:
        objects: code points of the objects, in the order of the first answer.
        styles, backgrounds: their names, in the order of the second and the third.
        widths: channels of the network's stages.
        training: how it was trained; free form.
    """

    model_config = ConfigDict(extra="forbid")

    objects: list[str] = Field(min_length=2)
    styles: list[str] = Field(min_length=2)
    backgrounds: list[str] = Field(min_length=2)
    widths: list[int] = Field(min_length=1)
    training: dict[str, Any] = {}


@dataclass(frozen=True)
class Judgment:
    """The judge's outputs for N pictures.

    Attributes:
        features: (N, d) float32.
        logits: for each of `ASPECTS`: (N, K) float32.
    """

    features: Tensor
    logits: tuple[Tensor, Tensor, Tensor]


class JudgeNetwork(nn.Module):
    """One residual block per width but the first, each halving the sides; three linear answers on the mean."""

    def __init__(self, objects: int, styles: int, backgrounds: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(widths[0])
        )
        self.blocks = nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))
        self.heads = nn.ModuleList(nn.Linear(widths[-1], classes) for classes in (objects, styles, backgrounds))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """pixels: (B, 3, H, W) in [−1, 1]. Returns features (B, d), then logits for each of `ASPECTS`."""
        x = F.relu(self.stem(pixels))
        for block in self.blocks:
            x = block(x)
        features = x.mean(dim=(2, 3))
        named, style, background = (head(features) for head in self.heads)
        return features, named, style, background


class Judge:
    """A trained judge with its card.

    digest: the first digits of a hash of its weights.
    """

    def __init__(self, network: JudgeNetwork, card: JudgeCard, device: str = "cpu") -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.card = card
        self._device = device

    @torch.inference_mode()
    def judge(self, pictures: Tensor) -> Judgment:
        """pictures: (N, 3, H, W) uint8."""
        parts = [self.network(part.to(self._device).float() / 127.5 - 1.0) for part in pictures.split(BATCH)]
        features, *logits = (torch.cat(each).float().cpu() for each in zip(*parts, strict=True))
        return Judgment(features, (logits[0], logits[1], logits[2]))

    @property
    def digest(self) -> str:
        hashed = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            hashed.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()[:12]


def build_judge(card: JudgeCard) -> JudgeNetwork:
    """The network that a card describes, with random weights."""
    return JudgeNetwork(len(card.objects), len(card.styles), len(card.backgrounds), card.widths)


def save_judge(folder: Path, weights: dict[str, Tensor], card: JudgeCard) -> None:
    """Write a folder. Each file is written atomically, the card last."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    write_text_atomically(folder / CARD, card.model_dump_json(indent=2) + "\n")


def load_judge(folder: Path, device: str = "cpu") -> Judge:
    """The judge in a folder.

    Raises:
        CheckpointError: naming the file, the key and the cause in one line.
    """
    try:
        card = JudgeCard.model_validate(read_json(folder / CARD))
    except ValidationError as error:
        raise invalid_card(folder / CARD, error, JudgeCard) from error
    with torch.device("meta"):
        network = build_judge(card)
    network.load_state_dict(read_weights(folder / WEIGHTS, network.state_dict()), assign=True)
    return Judge(network, card, device)
