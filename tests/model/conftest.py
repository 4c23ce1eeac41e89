"""Fixtures of the tests of `model`: a small U-Net, a small data set, a model folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from denoised.model.checkpoints.card_file import CardFile
from denoised.model.checkpoints.writing import save_model, scheduler_config
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.training.datasets.dataset import Dataset
from tests.requirements import THREADS

UNCONDITIONAL = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_head_dim=8,
    norm_num_groups=4,
)
CONDITIONAL = dataclasses.replace(UNCONDITIONAL, num_class_embeds=4)


def _stir(net: nn.Module, seed: int = 0) -> None:
    """Replace every weight by a random one, so that no norm is the identity and no bias is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(net.state_dict().items()):
        noise = torch.randn(weight.shape, generator=generator)
        fan_in = max(1, weight[0].numel()) if weight.dim() > 1 else 1
        scale = 0.7 / fan_in**0.5 if weight.dim() > 1 else 0.2
        weight.copy_(noise * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


@pytest.fixture(autouse=True, scope="module")
def thread_count() -> Iterator[None]:
    """Use one thread, or as many as OMP_NUM_THREADS says."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def same_threads_again(thread_count: None) -> Iterator[None]:
    """Undo what a test of several threads sets: they would slow down the tests after it."""
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def stir() -> Callable[..., None]:
    """`stir(net, seed=0)`: draw all weights of a network at random."""
    return _stir


@pytest.fixture
def unconditional() -> UNetConfig:
    """A U-Net of two levels on gray 8×8 images, without classes."""
    return UNCONDITIONAL


@pytest.fixture
def conditional() -> UNetConfig:
    """`unconditional` with three classes and the null class."""
    return CONDITIONAL


@pytest.fixture
def weights() -> Callable[[UNetConfig], dict[str, Tensor]]:
    """`weights(config)`: random weights for that network."""

    def draw(config: UNetConfig) -> dict[str, Tensor]:
        net = UNet(config)
        _stir(net)
        return net.state_dict()

    return draw


@pytest.fixture
def folder(tmp_path: Path, weights: Callable[[UNetConfig], dict[str, Tensor]]) -> Callable[..., Path]:
    """`folder(config, labels=…, **scheduler)`: a model folder as `save_model` writes it.

    `unconditional=…` is the card's; if left out, the last class means "no label", unless the labels name that, too.
    """

    def write(config: UNetConfig = CONDITIONAL, labels: tuple[str, ...] = (), **scheduler: object) -> Path:
        path = tmp_path / "boots"
        rows = config.num_class_embeds
        unconditional = scheduler.pop("unconditional", True if rows and len(labels) != rows else None)
        content = {**scheduler_config("linear", "epsilon"), **scheduler}
        card = CardFile.model_validate({"labels": labels, "unconditional": unconditional})
        save_model(path, config, weights(config), content, card)
        return path

    return write


@pytest.fixture
def dataset() -> Dataset:
    """Twenty gray 8×8 images of three classes: stripes, with a brightness for each class."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(20) % 3
    stripes = torch.arange(8).view(1, 1, 8, 1) % 2 * 120
    noise = torch.randint(0, 16, (20, 1, 8, 8), generator=generator)
    images = (stripes + noise + classes.view(-1, 1, 1, 1) * 50).to(torch.uint8)
    return Dataset(images=images, classes=classes, labels=("dark", "gray", "light"), source="stripes")
