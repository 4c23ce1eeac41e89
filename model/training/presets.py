"""Network shapes to train, each with a length, batch size, learning rate and thread count that suit it."""

from __future__ import annotations

from dataclasses import dataclass

from denoised.model.errors import TrainingError
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.training.datasets.dataset import Dataset


@dataclass(frozen=True)
class Preset:
    """A network's shape and the defaults of its training; the dataset decides size, channels and classes.

    channels: width of each level, finest first.
    attention: whether each level has attention.
    layers: residual blocks per level.
    groups: groups of each normalization.
    head_dim: channels per attention head.
    images, batch, learning_rate, threads: as in `TrainingConfig`.
    """

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    groups: int
    head_dim: int
    images: int
    batch: int
    learning_rate: float
    threads: int

    @property
    def downscale(self) -> int:
        """The number that the sides of images must be multiples of: each level but the last halves them."""
        return int(2 ** (len(self.channels) - 1))


#                     channels             attention at each level   layers groups head_dim  images batch rate threads
PRESETS = {
    "tiny":   Preset((16, 32),            (False, True),              1,      8,    16,    300_000,  128, 2e-3,    1),
    "small":  Preset((32, 64, 128),       (False, False, True),       1,      8,    32,  1_000_000,  128, 1e-3,    0),
    "medium": Preset((64, 128, 256),      (False, False, True),       2,     16,    64,  4_000_000,  128, 5e-4,    0),
    "large":  Preset((64, 128, 256, 256), (False, False, True, True), 2,     32,    64, 20_000_000,  128, 2e-4,    0),
}  # fmt: skip
FROM_PRESET = ("images", "batch", "learning_rate", "threads")  # settings whose default is the preset's


def unet_config(preset: str, dataset: Dataset, dropout: float = 0.0) -> UNetConfig:
    """The network for a dataset: its channels and size, its K classes, and one null class for guidance.

    Raises:
        TrainingError: if the size of the images does not fit the preset.
    """
    shape = PRESETS[preset]
    channels, height, width = dataset.images.shape[1:]
    factor = shape.downscale
    if height % factor or width % factor:
        raise TrainingError(
            f"images of {width}×{height} do not fit preset {preset!r}: sides must be multiples of {factor}"
        )
    return UNetConfig(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in shape.attention),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(shape.attention)),
        attention_head_dim=shape.head_dim,
        norm_num_groups=shape.groups,
        dropout=dropout,
        num_class_embeds=len(dataset.labels) + 1,
    )
