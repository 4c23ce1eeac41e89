"""Measuring the images of a model, of the training set or of noise against test images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from denoised.model.checkpoints.folders import find_files
from denoised.model.checkpoints.labels import class_index
from denoised.model.checkpoints.weight_files import find_weights
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.data_splits import load_splits, shuffle
from denoised.model.evaluation.features import WEIGHTS as FEATURE_WEIGHTS
from denoised.model.evaluation.features import FeatureSpace, load_features
from denoised.model.evaluation.image_generation import (
    GenerationSettings,
    balanced_labels,
    generate_images,
    uniform_noise,
)
from denoised.model.evaluation.metrics import compute_scores
from denoised.model.evaluation.quality_table import MODEL, NOISE, TRAINING, Measurement, Result
from denoised.model.serving.loading import load_model
from denoised.model.serving.pixel_model import PixelModel


class Evaluator:
    """A feature space, test images to compare with, and optionally a model.

    batch: images per evaluation of the network.
    compiled: compile the network with torch.compile, which takes a C++ compiler and a minute.

    Raises:
        ModelError: if a folder cannot be read, or the parts do not fit together.
    """

    def __init__(
        self,
        data: Path,
        features: Path,
        model: Path | None = None,
        *,
        device: str = "cpu",
        batch: int = 64,
        compiled: bool = False,
    ) -> None:
        self.space: FeatureSpace = load_features(features, device)
        self.features = digest(features / FEATURE_WEIGHTS)
        self.model: PixelModel | None = load_model(model, device=device) if model is not None else None
        self.weights = digest(find_weights(find_files(model).weights)) if model is not None else ""
        if self.model is not None and compiled:
            self.model.unet.compile(dynamic=False)
        if self.model is not None and self.model.shape != self.space.card.image_shape:
            raise EvaluationError(
                f"the model makes images of (C, H, W) = {self.model.shape}, "
                f"the feature network takes {self.space.card.image_shape}: name another with --features"
            )
        self.training, self.test = load_splits(data, min(self.space.card.image_shape[1:]))
        self.reference = self.space.extract(self.test.images)
        self.batch = batch

    def model_measurement(
        self,
        sampler: str,
        steps: int,
        samples: int,
        *,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        seed: int = 0,
        arithmetic: str = "float32",
    ) -> Measurement:
        """A measurement of the model's images, sampled with these settings."""
        how = (sampler, steps, eta, guidance_scale, samples, seed, arithmetic)
        return Measurement(MODEL, self.weights, self.features, *how)

    def baseline_measurement(self, source: str, samples: int, seed: int = 0) -> Measurement:
        """A measurement of images that no model made. source: `TRAINING` or `NOISE`."""
        return Measurement(source, "", self.features, "", 0, 0.0, 0.0, samples, seed, "")

    def measure(self, measurement: Measurement, advance: Callable[[int], None] = lambda count: None) -> Result:
        """Generate or select the images and score them against the test images.

        advance: called with the number of newly generated images.

        Raises:
            ModelError: for a sampler or steps the model does not offer, too few images, or without torchmetrics.
        """
        started = perf_counter()
        images, requested = self._images(measurement, advance)
        return self.score_images(images, requested, measurement.seed, started, self._evaluations(measurement))

    def score_images(
        self, images: Tensor, requested: Tensor | None, seed: int, started: float, evaluations: int = 0
    ) -> Result:
        """Score images (N, C, H, W) uint8 against the test images.

        requested: (N,) their classes, if known.
        started: when the measurement began, by time.perf_counter().
        """
        scores = compute_scores(self.space.extract(images), self.reference, requested, seed)
        return Result(evaluations=evaluations, **asdict(scores), seconds=perf_counter() - started)

    def _images(self, measurement: Measurement, advance: Callable[[int], None]) -> tuple[Tensor, Tensor | None]:
        """The images of a measurement, and the feature network's indices of their classes, if known."""
        if measurement.source == NOISE:
            return uniform_noise(measurement.samples, self.space.card.image_shape, measurement.seed), None
        if measurement.source == TRAINING:
            return self._training_images(measurement)
        assert self.model is not None, "only an evaluator with a model makes such a measurement"
        labels = balanced_labels(measurement.samples, len(self.model.card.labels))
        settings = GenerationSettings(
            sampler=measurement.sampler,
            steps=measurement.steps,
            eta=measurement.eta,
            guidance_scale=measurement.guidance_scale,
            seed=measurement.seed,
            batch=self.batch,
            precision=measurement.arithmetic,
        )
        requested = class_indices(labels, self.model.card.labels, self.space.card.labels)
        return generate_images(self.model, labels, settings, advance), requested

    def _training_images(self, measurement: Measurement) -> tuple[Tensor, Tensor | None]:
        if measurement.samples > len(self.training):
            raise EvaluationError(
                f"samples = {measurement.samples}, but there are {len(self.training)} training images"
            )
        chosen = shuffle(self.training, measurement.seed, measurement.samples)
        return chosen.images, class_indices(chosen.classes.tolist(), chosen.labels, self.space.card.labels)

    def _evaluations(self, measurement: Measurement) -> int:
        if measurement.source != MODEL or self.model is None:
            return 0
        return self.model.plan(measurement.sampler, measurement.steps, measurement.eta).evaluations


def class_indices(classes: Sequence[int | None], labels: Sequence[str], known: Sequence[str]) -> Tensor | None:
    """Translate indices into `labels` to indices into `known` by class name: (N,) int64.

    None if a class has no name, or a name that is not in `known`.
    """
    translated = [class_index(label, known) for label in labels]
    if None in classes or not labels or None in translated:
        return None
    return torch.tensor([index for k in classes if k is not None and (index := translated[k]) is not None])


def digest(path: Path) -> str:
    """The first twelve digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
