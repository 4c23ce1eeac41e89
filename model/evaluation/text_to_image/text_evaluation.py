"""Draw held-out captions with a text-to-image model, and have the judge look at the pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoised.model.errors import EvaluationError
from denoised.model.evaluation.metrics import frechet_distance
from denoised.model.evaluation.text_to_image.judge import Judge, Judgment
from denoised.model.evaluation.text_to_image.judge_trainer import correct_answers
from denoised.model.evaluation.text_to_image.text_scores import Agreement, Ranks, agreement, rank_true_pictures
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.sampling import sample
from denoised.model.training.emoji.captions import full_caption
from denoised.model.training.emoji.emoji_pictures import COLOR_NAMES, SIDE, EmojiPictures
from denoised.model.training.emoji.held_out import held_out_combinations
from denoised.model.training.emoji.styles import STYLE_NAMES

Advance = Callable[[int], None]
REAL_BATCH = 1_000  # real pictures that are judged at a time


@dataclass(frozen=True)
class DrawingSettings:
    """How pictures are sampled.

    seed: of the first picture; each further one uses the next.
    batch: pictures per evaluation of the U-Net.
    """

    sampler: str
    steps: int
    guidance_scale: float
    seed: int = 0
    batch: int = 32


@dataclass(frozen=True)
class TextReport:
    """What was measured.

    Attributes:
        captions: how many were drawn.
        drawn: of the model's pictures, with their captions.
        unseen_drawings, unseen_colors: the same for captions whose object is never trained on in that style, and for
            those where only the background is new; None if there are none.
        shuffled: of the model's pictures, with each other's captions: what chance gives.
        real: of the real pictures of the same captions: what the judge itself can do.
        ranks: of the true pictures, see `Ranks`.
        frechet: distance to the real pictures of the same captions, in the judge's features.
        trained_frechet: the same for as many real pictures of captions that are trained on.
        seconds: that drawing took.
    """

    captions: int
    drawn: Agreement
    unseen_drawings: Agreement | None
    unseen_colors: Agreement | None
    shuffled: Agreement
    real: Agreement
    ranks: Ranks
    frechet: float
    trained_frechet: float
    seconds: float


class RealFeatures:
    """The judge's features of every drawing on every background; computed once, when they are first needed."""

    def __init__(self, pictures: EmojiPictures, judge: Judge) -> None:
        self._pictures, self._judge = pictures, judge
        self._features: Tensor | None = None

    def read(self, advance: Advance) -> Tensor:
        """(D, K, d). advance: called with numbers of pictures that are judged."""
        if self._features is None:
            parts = []
            for start in range(0, self._pictures.combinations, REAL_BATCH):
                part = np.arange(start, min(start + REAL_BATCH, self._pictures.combinations))
                parts.append(self._judge.judge(self._pictures.on_colors(part)).features)
                advance(len(part))
            # (D·K, d) → (D, K, d): combination k is drawing k // K on color k % K.
            self._features = torch.cat(parts).unflatten(0, (len(self._pictures), len(COLOR_NAMES)))
        return self._features


class TextEvaluation:
    """Captions that are never trained on, with the judge that knows their pictures.

    Raises:
        EvaluationError: if the judge knows other objects, or there are not as many captions.
    """

    def __init__(self, pictures: EmojiPictures, judge: Judge, captions: int, seed: int = 0) -> None:
        check_judge(judge, pictures)
        self._pictures, self._judge = pictures, judge
        self.held_out = held_out_combinations(pictures)
        self.combinations = draw_combinations(np.flatnonzero(self.held_out), captions, seed)
        self._trained = draw_combinations(np.flatnonzero(~self.held_out), captions, seed)
        self._real = RealFeatures(pictures, judge)

    def first(self, count: int) -> TextEvaluation:
        """The same evaluation of the first `count` captions alone."""
        part = copy.copy(self)
        part.combinations, part._trained = self.combinations[:count], self._trained[:count]
        return part

    @property
    def captions(self) -> list[str]:
        """What is drawn, in order."""
        return [full_caption(self._pictures, int(each)) for each in self.combinations]

    def measure(self, images: Tensor, seconds: float = 0.0, advance: Advance = lambda count: None) -> TextReport:
        """Judge pictures (N, 3, H, W) uint8 of the captions.

        advance: called with numbers of real pictures that are judged.
        """
        answers = correct_answers(self._pictures, self.combinations)
        judgment = self._judge.judge(images)
        every = self._real.read(advance)  # (D, K, d)
        real, trained = (self._features_of(every, each) for each in (self.combinations, self._trained))
        new_drawing = torch.from_numpy(self._unseen_drawing()[self.combinations // len(COLOR_NAMES)])
        drawings = torch.from_numpy(self.combinations // len(COLOR_NAMES))
        return TextReport(
            captions=len(images),
            drawn=agreement(judgment, answers),
            unseen_drawings=_agreement_of(judgment, answers, new_drawing),
            unseen_colors=_agreement_of(judgment, answers, ~new_drawing),
            shuffled=agreement(judgment, answers.roll(1, dims=1)),
            real=agreement(self._judge.judge(self._pictures.on_colors(self.combinations)), answers),
            ranks=rank_true_pictures(judgment.features, every, drawings, answers[2]),
            frechet=frechet_distance(judgment.features, real),
            trained_frechet=frechet_distance(trained, real),
            seconds=seconds,
        )

    def _features_of(self, every: Tensor, combinations: npt.NDArray[np.int64]) -> Tensor:
        return every.flatten(0, 1)[torch.from_numpy(combinations)]

    def _unseen_drawing(self) -> Any:
        """(D,) whether a drawing is held out on every background."""
        return np.all(self.held_out.reshape(len(self._pictures), -1), axis=1)


def check_judge(judge: Judge, pictures: EmojiPictures) -> None:
    """Check that a judge was trained on these drawings.

    Raises:
        EvaluationError: if it was not.
    """
    for name, known, wanted in (
        ("objects", judge.card.objects, [each.code for each in pictures.objects]),
        ("styles", judge.card.styles, list(STYLE_NAMES)),
        ("backgrounds", judge.card.backgrounds, list(COLOR_NAMES)),
    ):
        if known != wanted:
            raise EvaluationError(
                f"the judge knows {len(known)} {name}, which are not the {len(wanted)} of the drawings: train one for "
                "these with denoised train-judge"
            )


def draw_combinations(candidates: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` different ones in an order that the seed determines.

    Raises:
        EvaluationError: if there are fewer.
    """
    if len(candidates) < count:
        raise EvaluationError(f"--samples {count:,} is over the {len(candidates):,} captions that are held out")
    return candidates[np.random.default_rng(seed).permutation(len(candidates))[:count]]


def check_model(model: LatentModel) -> None:
    """Check that a model draws pictures of the drawings' size.

    Raises:
        EvaluationError: if it does not.
    """
    if (model.card.width, model.card.height, model.card.channels) != (SIDE, SIDE, 3):
        size = f"{model.card.width}×{model.card.height}×{model.card.channels}"
        raise EvaluationError(f"{model.card.name} draws pictures of {size}, the judge knows {SIDE}×{SIDE}×3")


def draw_captions(
    model: LatentModel, captions: list[str], settings: DrawingSettings, advance: Advance = lambda count: None
) -> tuple[Tensor, float]:
    """One picture per caption, as the service draws it: ((N, 3, H, W) uint8, seconds).

    Raises:
        PlanError: for a sampler or steps that the model does not offer.
    """
    images, started = [], perf_counter()
    for start in range(0, len(captions), settings.batch):
        part = captions[start : start + settings.batch]
        latents = sample(
            model,
            [ConditioningRequest(prompt=caption) for caption in part],
            seed=settings.seed + start,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
        )
        images.append(torch.from_numpy(model.decode(latents)))
        advance(len(part))
    return torch.cat(images).permute(0, 3, 1, 2).contiguous(), perf_counter() - started


def _agreement_of(judgment: Judgment, answers: Tensor, chosen: Tensor) -> Agreement | None:
    """The agreement of some of the pictures; None if there are none."""
    if not chosen.any():
        return None
    named, style, background = (each[chosen] for each in judgment.logits)
    return agreement(Judgment(judgment.features[chosen], (named, style, background)), answers[:, chosen])
