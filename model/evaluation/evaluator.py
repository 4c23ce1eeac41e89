"""Measuring the images of a model, of the training set or of noise against test images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from denoised.model.backends.backend import Backend, EagerBackend
from denoised.model.backends.selection import select_backend
from denoised.model.checkpoints.card_file import Defaults
from denoised.model.checkpoints.folders import find_files
from denoised.model.checkpoints.labels import class_index
from denoised.model.checkpoints.weight_files import find_weights
from denoised.model.diffusion.level_choice import MODELS_OWN, LevelChoice
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
from denoised.model.evaluation.metrics import compute_scores, frechet_distance
from denoised.model.evaluation.quality_table import MODEL, NOISE, TRAINING, Measurement, Result
from denoised.model.serving.loading import load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import count_evaluations


class Evaluator:
    """A feature space, test images to compare with, and optionally a model.

    batch: images per evaluation of the network.
    compiled: compile the network with torch.compile, which takes a C++ compiler and a minute. Otherwise float32 images
        are made by the backend that serves them (`model.backends.selection`).

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
        self._compiled = compiled
        if self.model is not None and compiled:
            self.model.unet.compile(dynamic=False)
        if self.model is not None and self.model.shape != self.space.card.image_shape:
            raise EvaluationError(
                f"the model makes images of (C, H, W) = {self.model.shape}, "
                f"the feature network takes {self.space.card.image_shape}: name another with --features"
            )
        self.training, self.test = load_splits(data, min(self.space.card.image_shape[1:]))
        self.reference = self.space.extract(self.test.images)
        self.reference_classes = class_indices(self.test.classes.tolist(), self.test.labels, self.space.card.labels)
        self.batch = batch

    def model_measurement(
        self,
        sampler: str,
        steps: int,
        samples: int,
        *,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        levels: LevelChoice = MODELS_OWN,
        seed: int = 0,
        arithmetic: str = "float32",
    ) -> Measurement:
        """A measurement of the model's images, sampled with these settings. Levels are rounded to six digits."""
        how = (sampler, steps, eta, guidance_scale, samples, seed, arithmetic)
        return Measurement(
            MODEL,
            self.weights,
            self.features,
            *how,
            spacing="karras" if levels.karras else levels.spacing or "",
            sigma_min=levels.sigma_min,
            sigma_max=levels.sigma_max,
            sigmas=tuple(float(f"{sigma:.6g}") for sigma in levels.sigmas or ()),
            guidance_interval=guidance_interval or (),
        )

    def default_measurement(
        self, samples: int, *, steps: int | None = None, seed: int = 0, arithmetic: str = "float32"
    ) -> Measurement:
        """A measurement of the images that the model's card makes by default, or with other steps."""
        assert self.model is not None
        default = self.model.card.default
        return self.model_measurement(
            default.sampler,
            steps or default.steps,
            samples,
            guidance_scale=default.guidance_scale,
            guidance_interval=default.guidance_interval,
            levels=default_levels(default, steps),
            seed=seed,
            arithmetic=arithmetic,
        )

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

    def fid(self, measurement: Measurement) -> float:
        """The FID alone, for many measurements in a row.

        Raises:
            ModelError: as `measure`.
        """
        images, _ = self._images(measurement, lambda count: None)
        return frechet_distance(self.space.extract(images).values, self.reference.values)

    def score_images(
        self, images: Tensor, requested: Tensor | None, seed: int, started: float, evaluations: int = 0
    ) -> Result:
        """Score images (N, C, H, W) uint8 against the test images.

        requested: (N,) their classes, if known.
        started: when the measurement began, by time.perf_counter().
        """
        scores = compute_scores(
            self.space.extract(images), self.reference, requested, seed, reference_classes=self.reference_classes
        )
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
            guidance_interval=measurement.interval,
            levels=measurement.levels,
            seed=measurement.seed,
            batch=self.batch,
            precision=measurement.arithmetic,
        )
        requested = class_indices(labels, self.model.card.labels, self.space.card.labels)
        self.model.backend = self._served_backend if measurement.arithmetic == "float32" else self._eager_backend
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
        plan = self.model.plan(measurement.sampler, measurement.steps, measurement.eta, measurement.levels)
        return count_evaluations(plan, measurement.guidance_scale, measurement.interval)

    @cached_property
    def _served_backend(self) -> Backend:
        """What evaluates the network in a worker: the fastest that is exact, unless the network is compiled."""
        assert self.model is not None
        if self._compiled:
            return self._eager_backend
        model = self.model  # the selection takes the weights of the network that it is given
        return select_backend(deepcopy(model.unet), model.shape, model.card.timesteps, model.device.type).backend

    @cached_property
    def _eager_backend(self) -> Backend:
        """PyTorch's own kernels, which autocast rounds to bfloat16."""
        assert self.model is not None
        return EagerBackend(self.model.unet)


def default_levels(default: Defaults, steps: int | None = None) -> LevelChoice:
    """The noise levels that a card's defaults name one by one; for another number of steps, those of its spacing."""
    if default.sigmas is not None and steps in (None, len(default.sigmas)):
        return LevelChoice(sigmas=tuple(default.sigmas))
    return LevelChoice(default.spacing, None, default.sigma_min, default.sigma_max)


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
