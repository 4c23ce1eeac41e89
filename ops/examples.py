"""Make the pictures that the pages show: python ops/examples.py [FOLDER WITH FASHION-MNIST [PICTURES OF A RUN]]

Training pictures: a row for each class, eight columns in the order of the data set. Of the emoji model, with the file
`pictures.npz` of a run of `denoised train-text`: a row for each prompt of its card, the object in every style, then
other drawings in the prompt's style, on its background unless that was held out. Feature maps: a row for each level
of the bundled model's network, its first eight channels on the way down. The film of the first sight: a row of x_t, a
row of x̂_0, both decoded, and a row of ε̂/3.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from denoised.model.diffusion.guidance import guide
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import advance
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.loading import ZOO, load_model, load_text_model
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.datasets.idx_files import load_idx
from denoised.model.training.datasets.sources import load_digits
from denoised.model.training.emoji.emoji_pictures import COLOR_NAMES, EmojiPictures
from denoised.model.training.emoji.held_out import held_out_combinations
from denoised.model.training.emoji.styles import STYLE_NAMES

PLAYGROUND = Path(__file__).resolve().parent.parent / "app" / "playground"
SHEETS = PLAYGROUND / "learn" / "examples"
FILM = PLAYGROUND / "stage" / "film.webp"
COLUMNS = 8
MODEL, LABEL, TIME = "fashion-mnist", "sneaker", 300
FILM_PROMPT, SEED, FILM_STEPS = "fox, flat style, on a blue background", 4, 20
NOISE_RANGE = 3.0  # of ε̂: −3 is black, 3 is white
ENLARGED, GAP = 4, 12  # factor, and pixels between two pictures
SHEET_QUALITY = 85
QUALITY = 55  # of the film's WebP, because the page has few bytes for it


def main() -> None:
    folder = Path(next(iter(sys.argv[1:]), "/usr/share/datasets/fashion-mnist"))
    for name, dataset in (("fashion-mnist", load_idx(folder)), ("digits", load_digits())):
        save_sheet(name, dataset.images, dataset.classes)
    for path in map(Path, sys.argv[2:3]):
        save_emoji_sheet(EmojiPictures.load(path))
    garments = load_idx(folder)
    sneaker = garments.labels.index(LABEL)
    save_film()
    save_moving_film()
    save_feature_maps(to_unit(garments.images[garments.classes == sneaker][:1]), sneaker)


def save_sheet(name: str, images: Tensor, classes: Tensor) -> None:
    """images: (N, 1, H, W) uint8; classes: (N,)."""
    count = int(classes.max()) + 1
    rows = [torch.cat(list(images[classes == k][:COLUMNS, 0]), dim=1) for k in range(count)]
    Image.fromarray(torch.cat(rows).numpy()).save(SHEETS / f"{name}.png", optimize=True)


def save_emoji_sheet(pictures: EmojiPictures) -> None:
    guide = json.loads((ZOO / "emoji" / "model_card.json").read_text())["prompt_guide"]
    rows = []
    for prompt in guide["examples"]:
        label, style, background = prompt.split(", ")
        color = background.removeprefix("on a ").removesuffix(" background")
        chosen = _trained_examples(pictures, label, style.removesuffix(" style"), COLOR_NAMES.index(color))
        rows.append(torch.cat(list(pictures.on_colors(chosen)), dim=2))  # (3, 64, 8·64)
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0)
    Image.fromarray(sheet.numpy()).save(SHEETS / "emoji.webp", quality=SHEET_QUALITY, method=6)


def _trained_examples(pictures: EmojiPictures, label: str, style: str, color: int) -> npt.NDArray[np.int64]:
    """The object in every style, then other drawings in the style; on the color unless that is held out."""
    trained = ~held_out_combinations(pictures).reshape(len(pictures), pictures.colors)  # (drawings, colors)
    shown = np.array([pictures.objects[k].label == label for k in pictures.object_of])
    drawn = np.array([STYLE_NAMES[k] == style for k in pictures.style_of])
    same = np.flatnonzero(shown & trained.any(axis=1))
    others = np.flatnonzero(drawn & ~shown & trained.any(axis=1))
    spread = others[np.linspace(0, len(others) - 1, COLUMNS - len(same)).astype(int)]
    near = [*range(color, pictures.colors), *range(color)]  # the color itself first
    return np.array([k * pictures.colors + next(c for c in near if trained[k, c]) for k in [*same, *spread]])


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


def save_film() -> None:
    """A guided run of DDIM from the noise of SEED, and the finished picture at the end."""
    model = load_text_model(ZOO / "emoji")
    request = ConditioningRequest(prompt=FILM_PROMPT)
    conditioning = model.encode([request, request.unconditional()])
    scale = torch.tensor([model.card.default.guidance_scale])
    plan = model.plan("ddim", FILM_STEPS, 0.0)
    x = plan.initial_scale * torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(SEED))
    latents: list[Tensor] = []  # x_t and x̂_0 of each step
    noise: list[Tensor] = []  # ε̂/3 of each step
    for row in range(plan.evaluations):
        level = [torch.tensor([float(values[row])]) for values in (plan.t, plan.alpha, plan.sigma)]
        both = model.denoise(x.expand(2, -1, -1, -1), *(each.expand(2) for each in level), conditioning)
        estimate = guide(both.select(slice(0, 1)), both.select(slice(1, 2)), scale)
        latents += [x, estimate.x0]
        noise.append(estimate.epsilon / NOISE_RANGE)
        x = advance(x[:, None], estimate, torch.zeros_like(x), torch.from_numpy(plan.matrices[row]).float()[None])[:, 0]
    pixels = model.decode(torch.cat([*latents, x, x]))  # (2·N, H, W, 3)
    small = model.preview(torch.cat([*noise, torch.zeros_like(x)]))  # (N, h, w, 3)
    side = model.card.height // small.shape[1]
    rows = [
        np.concatenate(list(each), axis=1)
        for each in (pixels[::2], pixels[1::2], small.repeat(side, 1).repeat(side, 2))
    ]
    Image.fromarray(np.concatenate(rows)).save(FILM, quality=QUALITY, method=6)


def save_moving_film() -> None:
    """The film of the first sight for the README: x_t and x̂_0 side by side, enlarged."""
    with Image.open(FILM) as film:
        side, large = film.height // 3, ENLARGED * film.height // 3
        frames = []
        for k in range(film.width // side):
            frame = Image.new("RGB", (2 * large + GAP, large), "white")
            for row in range(2):
                tile = film.crop((k * side, row * side, (k + 1) * side, (row + 1) * side))
                frame.paste(tile.resize((large, large), Image.Resampling.BICUBIC), (row * (large + GAP), 0))
            frames.append(frame)
    durations = [500, *[120] * (len(frames) - 2), 1800]  # ms
    path = PLAYGROUND.parents[1] / "docs" / "pictures" / "film.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=80, method=6)


def _bytes(maps: Tensor) -> Tensor:
    """Each map (C, H, W) from its lowest value, 0, to its highest, 255."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return 255 * (maps - low) / (high - low)


if __name__ == "__main__":
    main()
