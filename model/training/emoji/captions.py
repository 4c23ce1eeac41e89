"""What the pictures are called: `goat, fluent style, on a teal background`.

In training, parts of a caption are left out, so that the model draws what is asked and chooses the rest itself.
A caption without any word is what guidance compares with (Ho & Salimans 2022, arXiv:2207.12598, algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from denoised.model.training.emoji.emoji_pictures import COLOR_NAMES, EmojiObject, EmojiPictures
from denoised.model.training.emoji.styles import STYLE_NAMES

MAX_TAGS = 3  # of an object named by its tags


@dataclass(frozen=True)
class CaptionDropout:
    """How often a part of a caption is left out; each part independently of the others.

    Attributes:
        everything: the caption is empty.
        style, background: that part is left out.
        label: tags of the object stand in place of its name.
    """

    everything: float = 0.1
    style: float = 0.1
    background: float = 0.1
    label: float = 0.15


def write_caption(label: str, style: str | None, color: str | None) -> str:
    """The caption of a picture; None leaves a part out."""
    parts = (label, style and f"{style} style", color and f"on a {color} background")
    return ", ".join(part for part in parts if part)


def full_caption(pictures: EmojiPictures, combination: int) -> str:
    """The whole caption of a combination (`EmojiPictures`)."""
    drawing, color = divmod(combination, len(COLOR_NAMES))
    label = pictures.objects[pictures.object_of[drawing]].label
    return write_caption(label, STYLE_NAMES[pictures.style_of[drawing]], COLOR_NAMES[color])


def draw_caption(pictures: EmojiPictures, combination: int, dropout: CaptionDropout, generator: torch.Generator) -> str:
    """A caption of a combination for training, parts left out at random.

    It takes the same number of draws whatever is left out, so that captions do not change each other's.
    """
    everything, style, background, label, *tags = torch.rand(4 + 1 + MAX_TAGS, generator=generator).tolist()
    if everything < dropout.everything:
        return ""
    drawing, color = divmod(combination, len(COLOR_NAMES))
    shown = pictures.objects[pictures.object_of[drawing]]
    return write_caption(
        _draw_tags(shown, tags) if label < dropout.label else shown.label,
        STYLE_NAMES[pictures.style_of[drawing]] if style >= dropout.style else None,
        COLOR_NAMES[color] if background >= dropout.background else None,
    )


def _draw_tags(shown: EmojiObject, draws: list[float]) -> str:
    """One to `MAX_TAGS` different tags in random order; the label of an object without tags."""
    count, *picks = draws
    left, chosen = list(shown.tags), list[str]()
    for pick in picks[: 1 + int(count * MAX_TAGS)]:
        if left:
            chosen.append(left.pop(int(pick * len(left))))
    return ", ".join(chosen) or shown.label
