"""Make the sheets that the course at /learn shows: python ops/examples.py [FOLDER WITH FASHION-MNIST]

Training pictures: a row for each class, eight columns in the order of the data set. Feature maps: a row for each level
of the bundled model's network, its first eight channels on the way down.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.datasets.idx_files import load_idx
from denoised.model.training.datasets.sources import load_digits

SHEETS = Path(__file__).resolve().parent.parent / "app" / "playground" / "learn" / "examples"
COLUMNS = 8
MODEL, LABEL, TIME = "fashion-mnist", "sneaker", 300


def main() -> None:
    folder = Path(next(iter(sys.argv[1:]), "/usr/share/datasets/fashion-mnist"))
    for name, dataset in (("fashion-mnist", load_idx(folder)), ("digits", load_digits())):
        save_sheet(name, dataset.images, dataset.classes)
    garments = load_idx(folder)
    sneaker = garments.labels.index(LABEL)
    save_feature_maps(to_unit(garments.images[garments.classes == sneaker][:1]), sneaker)


def save_sheet(name: str, images: Tensor, classes: Tensor) -> None:
    """images: (N, 1, H, W) uint8; classes: (N,)."""
    count = int(classes.max()) + 1
    rows = [torch.cat(list(images[classes == k][:COLUMNS, 0]), dim=1) for k in range(count)]
    Image.fromarray(torch.cat(rows).numpy()).save(SHEETS / f"{name}.png", optimize=True)


def save_feature_maps(x0: Tensor, label: int) -> None:
    """x0: (1, 1, H, W) in −1 … 1, of class `label`."""
    model = load_model(ZOO / MODEL)
    schedule = NoiseSchedule.from_name("squaredcos_cap_v2")
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x_t = float(schedule.alpha[TIME]) * x0 + float(schedule.sigma[TIME]) * noise
    maps: list[Tensor] = []
    for block in model.unet.down_blocks:
        block.resnets[-1].register_forward_hook(lambda module, inputs, output: maps.append(output[0, :COLUMNS]))
    with torch.no_grad():
        model.unet(x_t, torch.tensor([float(TIME)]), torch.tensor([label]))
    size = x0.shape[-1]
    rows = [torch.cat(list(F.interpolate(_bytes(level)[None], size=size)[0]), dim=1) for level in maps]
    Image.fromarray(torch.cat(rows).byte().numpy()).save(SHEETS / f"{MODEL}-features.png", optimize=True)


def _bytes(maps: Tensor) -> Tensor:
    """Each map (C, H, W) from its lowest value, 0, to its highest, 255."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return 255 * (maps - low) / (high - low)


if __name__ == "__main__":
    main()
