"""How well pictures show what their captions ask for: the judge's answers against the captions'."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.evaluation.text_to_image.judge import Judgment

TOP = 5
NEAR_RANK = 10
DISTANCE_ROWS = 500  # rows of a distance matrix that are computed at a time


@dataclass(frozen=True)
class Agreement:
    """How often the judge's answers are the captions', 0 … 1.

    Attributes:
        pictures: how many were judged.
        style, background: the most likely one is the right one.
        object, object_top5: the right object is the most likely one, or among the five most likely of all.
        everything: object, style and background are right together.
    """

    pictures: int
    style: float
    background: float
    object: float
    object_top5: float
    everything: float


@dataclass(frozen=True)
class Ranks:
    """Where the true picture of a caption stands among all drawings on its background, nearest first, from 1.

    Attributes:
        candidates: how many drawings there are.
        median: of the ranks.
        first, near: the fractions that are 1, and at most `NEAR_RANK`.
    """

    candidates: int
    median: float
    first: float
    near: float

    @property
    def chance(self) -> float:
        """The median rank of pictures that have nothing to do with their captions."""
        return (self.candidates + 1) / 2


def agreement(judgment: Judgment, answers: Tensor) -> Agreement:
    """Compare the judge's answers with those of captions.

    answers: (3, N) the right object, style and background.
    """
    named = judgment.logits[0]
    top = named.topk(min(TOP, named.shape[1]), dim=1).indices  # (N, 5)
    right = [each.argmax(dim=1) == answer for each, answer in zip(judgment.logits, answers, strict=True)]
    return Agreement(
        pictures=len(named),
        style=_fraction(right[1]),
        background=_fraction(right[2]),
        object=_fraction(right[0]),
        object_top5=_fraction((top == answers[0][:, None]).any(dim=1)),
        everything=_fraction(right[0] & right[1] & right[2]),
    )


def rank_true_pictures(features: Tensor, candidates: Tensor, drawings: Tensor, backgrounds: Tensor) -> Ranks:
    """The ranks of true pictures by their distance in the judge's features.

    features: (N, d) of generated pictures; candidates: (D, K, d) of every drawing on every background.
    drawings, backgrounds: (N,) the true picture of each.
    """
    ranks = torch.empty(len(features), dtype=torch.int64)
    for color in range(candidates.shape[1]):
        chosen = (backgrounds == color).nonzero()[:, 0]
        for part in chosen.split(DISTANCE_ROWS):
            distances = torch.cdist(features[part], candidates[:, color])  # (n, D)
            # (n, 1), the distance to the true picture.
            true = distances.gather(1, drawings[part][:, None])
            ranks[part] = 1 + (distances < true).sum(dim=1)
    return Ranks(
        candidates=len(candidates),
        median=float(ranks.double().median()),
        first=_fraction(ranks == 1),
        near=_fraction(ranks <= NEAR_RANK),
    )


def _fraction(mask: Tensor) -> float:
    return float(mask.double().mean())
