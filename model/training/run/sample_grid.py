"""Grids of sample images that show how a training run is doing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.serving.loading import load_model
from denoised.model.serving.sampling import sample
from denoised.model.training.run.run_checkpoints import export_model
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.trainer import Trainer

MID_GRAY = 128


def save_sample_grid(trainer: Trainer, folder: RunFolder, rows: int = 4, columns: int = 10) -> None:
    """Sample from the averaged weights: one column for each of the first classes, `rows` images each."""
    export_model(trainer, folder.model)
    model = load_model(folder.model, device=str(trainer.device))
    columns = min(len(trainer.dataset.labels), columns)
    labels = list(range(columns)) * rows
    images = list(model.decode(sample(model, labels, steps=20, guidance_scale=2.0)))
    grid = contact_sheet(images, columns)
    write_atomically(folder.sample_grid(trainer.images_seen), lambda temporary: grid.save(temporary, format="png"))


def contact_sheet(images: Sequence[npt.NDArray[np.uint8]], columns: int, gap: int = 1) -> Image.Image:
    """Images (H, W, C) uint8 in rows of `columns`, on a mid-gray background."""
    height, width, channels = images[0].shape
    rows = -(-len(images) // columns)
    mode, background = ("L", MID_GRAY) if channels == 1 else ("RGB", (MID_GRAY,) * 3)
    sheet = Image.new(mode, (columns * (width + gap) - gap, rows * (height + gap) - gap), background)
    for k, pixels in enumerate(images):
        tile = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        sheet.paste(tile, ((k % columns) * (width + gap), (k // columns) * (height + gap)))
    return sheet
