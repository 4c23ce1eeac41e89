"""The pictures of the emoji model: drawings as RGBA bytes, shown on any of twelve background colors.

They are rendered once and stored as one file, `pictures.npz`, so that a run needs the packages only at its start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.errors import DataError
from denoised.model.training.emoji.icon_packages import Emoji
from denoised.model.training.emoji.styles import STYLE_NAMES

SIDE = 64  # pixels
COLORS: Mapping[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "red": (220, 40, 40),
    "orange": (250, 140, 40),
    "yellow": (250, 210, 50),
    "green": (60, 170, 80),
    "teal": (30, 150, 150),
    "blue": (50, 100, 220),
    "purple": (140, 70, 190),
    "pink": (250, 150, 190),
    "brown": (130, 80, 40),
}
COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True)
class EmojiObject:
    """What a picture shows: its code points, its name and other words for it."""

    code: str
    label: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class EmojiPictures:
    """N drawings of M objects. With C colors, combination k is drawing k // C on color k % C.

    Attributes:
        rgba: (N, 64, 64, 4) uint8, alpha not multiplied in.
        objects: the M objects.
        object_of: (N,) the object that a drawing shows.
        style_of: (N,) the style of a drawing, an index of `STYLE_NAMES`.
    """

    rgba: npt.NDArray[np.uint8]
    objects: tuple[EmojiObject, ...]
    object_of: npt.NDArray[np.int64]
    style_of: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rgba)

    @property
    def colors(self) -> int:
        """C."""
        return len(COLORS)

    @property
    def combinations(self) -> int:
        """N·C."""
        return len(self) * len(COLORS)

    def on_colors(self, combinations: npt.NDArray[np.int64]) -> Tensor:
        """The pictures of B combinations: (B, 3, 64, 64) uint8."""
        drawing, color = combinations // len(COLORS), combinations % len(COLORS)
        rgba = self.rgba[drawing].astype(np.float32)
        alpha = rgba[..., 3:] / 255  # (B, 64, 64, 1)
        background = np.array(list(COLORS.values()), dtype=np.float32)[color][:, None, None]  # (B, 1, 1, 3)
        # The drawing over the color (Porter & Duff 1984), (B, 64, 64, 3).
        mixed = rgba[..., :3] * alpha + background * (1 - alpha)
        return torch.from_numpy(np.rint(mixed).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()

    def save(self, path: Path) -> None:
        """Write one file, complete or not at all."""
        objects = json.dumps([(each.code, each.label, each.tags) for each in self.objects])
        arrays = {"rgba": self.rgba, "objects": np.array(objects), "object_of": self.object_of}
        write_atomically(path, lambda temporary: _save_arrays(temporary, {**arrays, "style_of": self.style_of}))

    @classmethod
    def load(cls, path: Path) -> EmojiPictures:
        """Read what `save` wrote.

        Raises:
            DataError: if the file is not complete.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                objects = json.loads(str(arrays["objects"]))
                return cls(
                    rgba=arrays["rgba"],
                    objects=tuple(EmojiObject(code, label, tuple(tags)) for code, label, tags in objects),
                    object_of=arrays["object_of"],
                    style_of=arrays["style_of"],
                )
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise DataError(f"{path} is not a file of rendered pictures ({error}): delete it") from error


def render_pictures(emoji: Sequence[Emoji], advance: Callable[[int], None] = lambda count: None) -> EmojiPictures:
    """Render every drawing.

    advance: called with the number of drawings that are newly done.

    Raises:
        DataError: if resvg-py is not installed, or a drawing cannot be rendered.
    """
    rgba, object_of, style_of = [], [], []
    for index, each in enumerate(emoji):
        for style, svg in each.drawings.items():
            rgba.append(_render(svg, f"{each.label} ({style})"))
            object_of.append(index)
            style_of.append(STYLE_NAMES.index(style))
        advance(len(each.drawings))
    return EmojiPictures(
        rgba=np.stack(rgba),
        objects=tuple(EmojiObject(each.code, each.label, each.tags) for each in emoji),
        object_of=np.array(object_of),
        style_of=np.array(style_of),
    )


def _render(svg: str, name: str) -> npt.NDArray[np.uint8]:
    """(64, 64, 4) RGBA bytes of an SVG document, centered if it is not square."""
    try:
        import resvg_py  # only the extra "train" has it, and only this function needs it
    except ImportError as error:
        raise DataError("resvg-py, which renders the drawings, is not installed: it is in the extra 'train'") from error
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True))
    except ValueError as error:
        raise DataError(f"the drawing {name} cannot be rendered: {error}") from error
    with Image.open(BytesIO(png)) as image:
        rendered = image.convert("RGBA")
    canvas = Image.new("RGBA", (SIDE, SIDE))
    canvas.paste(rendered, ((SIDE - rendered.width) // 2, (SIDE - rendered.height) // 2))
    return np.array(canvas)


def _save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    with path.open("wb") as file:  # given a path, numpy appends .npz to it
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
