"""Make the pictures that the pages show: python ops/examples.py [FOLDER WITH FASHION-MNIST]

Training pictures: a row for each class, eight columns in the order of the data set. Feature maps: a row for each level
of the bundled model's network, its first eight channels on the way down. The film of the first sight: a row of x_t, a
row of x̂_0 and a row of ε̂/3.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.datasets.idx_files import load_idx
from denoised.model.training.datasets.sources import load_digits

PLAYGROUND = Path(__file__).resolve().parent.parent / "app" / "playground"
SHEETS = PLAYGROUND / "learn" / "examples"
COLUMNS = 8
MODEL, LABEL, TIME = "fashion-mnist", "sneaker", 300
SEED, FILM_STEPS = 7, 28
NOISE_RANGE = 3.0  # of ε̂: −3 is black, 3 is white
ENLARGED, GAP = 7, 12  # factor, and pixels between two pictures


def main() -> None:
    folder = Path(next(iter(sys.argv[1:]), "/usr/share/datasets/fashion-mnist"))
    for name, dataset in (("fashion-mnist", load_idx(folder)), ("digits", load_digits())):
        save_sheet(name, dataset.images, dataset.classes)
    garments = load_idx(folder)
    sneaker = garments.labels.index(LABEL)
    save_film(sneaker)
    save_moving_film()
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


def save_film(label: int) -> None:
    """A run of DDIM from the noise of SEED, and the finished picture at the end."""
    model = load_model(ZOO / MODEL)
    conditioning = model.encode([ConditioningRequest(label=label)])
    plan = model.plan("ddim", FILM_STEPS, 0.0)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(SEED))
    columns: list[Tensor] = []
    for row in range(plan.evaluations):
        level = [torch.tensor([float(values[row])]) for values in (plan.t, plan.alpha, plan.sigma)]
        with torch.no_grad():
            estimate = model.denoise(x, *level, conditioning)
        x0 = estimate.x0.clamp(-1, 1)
        columns.append(torch.cat([x[0, 0], x0[0, 0], estimate.epsilon[0, 0] / NOISE_RANGE]))
        following = row + 1 < plan.evaluations
        alpha, sigma = (float(plan.alpha[row + 1]), float(plan.sigma[row + 1])) if following else (1.0, 0.0)
        x = alpha * x0 + sigma * estimate.epsilon
    columns.append(torch.cat([x[0, 0], x[0, 0], torch.zeros_like(x[0, 0])]))
    # Noise hardly compresses: 16 levels of gray take half of the bytes of 256.
    pixels = 17 * (7.5 * (torch.cat(columns, dim=1).clamp(-1, 1) + 1)).round().byte()
    Image.fromarray(pixels.numpy()).save(PLAYGROUND / "stage" / "film.png", optimize=True)


def save_moving_film() -> None:
    """The film of the first sight for the README: x_t and x̂_0 side by side, enlarged."""
    with Image.open(PLAYGROUND / "stage" / "film.png") as film:
        side, large = film.height // 3, ENLARGED * film.height // 3
        frames = []
        for k in range(film.width // side):
            frame = Image.new("L", (2 * large + GAP, large), 255)
            for row in range(2):
                tile = film.crop((k * side, row * side, (k + 1) * side, (row + 1) * side))
                frame.paste(tile.resize((large, large), Image.Resampling.NEAREST), (row * (large + GAP), 0))
            frames.append(frame.convert("RGB"))
    durations = [500, *[90] * (len(frames) - 2), 1800]  # ms
    path = PLAYGROUND.parents[1] / "docs" / "pictures" / "film.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, lossless=True)


def _bytes(maps: Tensor) -> Tensor:
    """Each map (C, H, W) from its lowest value, 0, to its highest, 255."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return 255 * (maps - low) / (high - low)


if __name__ == "__main__":
    main()
