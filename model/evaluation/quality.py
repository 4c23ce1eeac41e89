"""Measuring a model under many samplers, one row of a CSV at a time.

A row is what was measured (model and feature network by their weights' hashes, sampler, steps,
samples, seed, arithmetic) and what came of it. A row that is there is not measured again, and
the file is written anew, whole, after each: the sweep can be stopped anywhere and goes on.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from denoised.model.checkpoints.atomic import write_text_atomically
from denoised.model.checkpoints.folders import find_files
from denoised.model.checkpoints.weights import find_weights
from denoised.model.errors import EvaluationError, PlanError
from denoised.model.evaluation.feature_training import shuffled, splits
from denoised.model.evaluation.features import WEIGHTS as FEATURE_WEIGHTS
from denoised.model.evaluation.features import FeatureSpace, load_features
from denoised.model.evaluation.metrics import Generation, generate, score, spread, uniform_noise
from denoised.model.serving.loading import load_model
from denoised.model.serving.pixel_model import PixelModel

MODEL, TRAINING, NOISE = "model", "training images", "uniform noise"
BUDGETS = (5, 10, 20)  # evaluations an image
HEADLINE_ACCURACY_SAMPLES, HEADLINE_SAMPLES, FEW_TRAINING_IMAGES = 2_000, 10_000, 1_000
SWEEP_SAMPLES = 5_000


@dataclass(frozen=True)
class Measurement:
    """What to measure. weights, features: the first digits of a SHA-256; what makes no pictures has no sampler."""

    source: str
    weights: str
    features: str
    sampler: str
    steps: int
    eta: float
    guidance_scale: float
    samples: int
    seed: int
    arithmetic: str


@dataclass(frozen=True)
class Result:
    """What came of it. evaluations: of the network, an image and a guidance branch; the rest as in `Scores`."""

    evaluations: int
    fid: float
    kid: float
    kid_std: float
    precision: float
    recall: float
    class_accuracy: float | None
    seconds: float


Rows = dict[Measurement, Result]
Parsed = TypeVar("Parsed", Measurement, Result)
COLUMNS = tuple(field.name for kind in (Measurement, Result) for field in fields(kind))


def read_rows(path: Path) -> Rows:
    """What was measured before; nothing when there is no file.

    Raises:
        EvaluationError: for a file of other columns or with a value that is none; names the line.
    """
    if not path.exists():
        return {}
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise EvaluationError(f"{path}: columns are not {', '.join(COLUMNS)}: move the file away to measure anew")
    rows: Rows = {}
    for line in reader:
        try:
            rows[_parsed(Measurement, line)] = _parsed(Result, line)
        except (TypeError, ValueError) as error:
            raise EvaluationError(f"{path}: line {reader.line_num}: {error}: remove the line") from error
    return rows


def write_rows(path: Path, rows: Rows) -> None:
    """All of them, in their order; the file appears whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for question, answer in rows.items():
        writer.writerow(_written(value) for value in (*astuple(question), *astuple(answer)))
    write_text_atomically(path, text.getvalue())


class Bench:
    """A feature space, the test images seen in it, and the model to be held to them, if any: answers questions.

    batch: images an evaluation of the network; compiled: by torch.compile, which takes a C++ compiler and a minute.

    Raises:
        ModelError: when one of the folders cannot be read, or they do not fit.
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
                f"the model makes pictures of (C, H, W) = {self.model.shape}, "
                f"the feature network takes {self.space.card.image_shape}: name another with --features"
            )
        self.training, self.test = splits(data, min(self.space.card.image_shape[1:]))
        self.reference = self.space.of(self.test.images)
        self.batch = batch

    def question(
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
        """How good are this model's pictures, made so?"""
        how = (sampler, steps, eta, guidance_scale, samples, seed, arithmetic)
        return Measurement(MODEL, self.weights, self.features, *how)

    def comparison(self, source: str, samples: int, seed: int = 0) -> Measurement:
        """How good is what no model made? source: `TRAINING` or `NOISE`."""
        return Measurement(source, "", self.features, "", 0, 0.0, 0.0, samples, seed, "")

    def answer(self, question: Measurement, advanced: Callable[[int], None] = lambda count: None) -> Result:
        """Make or fetch the pictures and measure them against the test images.

        Raises:
            ModelError: for a sampler or steps that are not offered, too few pictures, or without torchmetrics.
        """
        started = perf_counter()
        pictures, asked = self._pictures(question, advanced)
        return self.judge(pictures, asked, question.seed, started, self._evaluations(question))

    def judge(self, pictures: Tensor, asked: Tensor | None, seed: int, started: float, evaluations: int = 0) -> Result:
        """Measure pictures (N, C, H, W) uint8 against the test images; asked: (N,) their classes, if known."""
        scores = score(self.space.of(pictures), self.reference, asked, seed)
        return Result(evaluations=evaluations, **asdict(scores), seconds=perf_counter() - started)

    def _pictures(self, question: Measurement, advanced: Callable[[int], None]) -> tuple[Tensor, Tensor | None]:
        if question.source == NOISE:
            return uniform_noise(question.samples, self.space.card.image_shape, question.seed), None
        if question.source == TRAINING:
            if question.samples > len(self.training):
                raise EvaluationError(
                    f"samples = {question.samples}, but there are {len(self.training)} training images"
                )
            taken = shuffled(self.training, question.seed, question.samples)
            return taken.images, class_indices(taken.classes.tolist(), taken.labels, self.space.card.labels)
        assert self.model is not None, "only a bench with a model asks for its pictures"
        labels = spread(question.samples, len(self.model.card.labels))
        generation = Generation(
            sampler=question.sampler,
            steps=question.steps,
            eta=question.eta,
            guidance_scale=question.guidance_scale,
            seed=question.seed,
            batch=self.batch,
            precision=question.arithmetic,
        )
        asked = class_indices(labels, self.model.card.labels, self.space.card.labels)
        return generate(self.model, labels, generation, advanced), asked

    def _evaluations(self, question: Measurement) -> int:
        if question.source != MODEL or self.model is None:
            return 0
        return self.model.plan(question.sampler, question.steps, question.eta).evaluations


def class_indices(classes: Sequence[int | None], labels: Sequence[str], known: Sequence[str]) -> Tensor | None:
    """Classes by their names' places in `known`, (N,) int64; None where a name is not known, or there are none."""
    if None in classes or not labels or not set(labels) <= set(known):
        return None
    return torch.tensor([known.index(labels[k]) for k in classes if k is not None])


def steps_within(model: PixelModel, sampler: str, budget: int) -> int | None:
    """The most steps of a sampler that take at most `budget` evaluations; None when not even one step does."""
    fitting = None
    for steps in range(1, budget + 1):
        try:
            evaluations = model.plan(sampler, steps, 0.0).evaluations
        except PlanError:  # fewer steps than this sampler takes
            continue
        if evaluations <= budget:
            fitting = steps
    return fitting


def headline(bench: Bench, model: PixelModel, arithmetic: str) -> list[Measurement]:
    """Noise, training images, and the model as its card says: 10,000 pictures for FID, 2,000 for class accuracy."""
    default = model.card.default
    return [
        bench.comparison(NOISE, HEADLINE_SAMPLES),
        bench.comparison(TRAINING, HEADLINE_SAMPLES),
        bench.comparison(TRAINING, FEW_TRAINING_IMAGES),
        *(
            bench.question(
                default.sampler, default.steps, samples, guidance_scale=default.guidance_scale, arithmetic=arithmetic
            )
            for samples in (HEADLINE_ACCURACY_SAMPLES, HEADLINE_SAMPLES)
        ),
    ]


def sweep(
    bench: Bench, model: PixelModel, samplers: Sequence[str], samples: int = SWEEP_SAMPLES, arithmetic: str = "float32"
) -> list[Measurement]:
    """Every sampler at each budget of evaluations, without guidance; small budgets first."""
    return [
        bench.question(sampler, steps, samples, arithmetic=arithmetic)
        for budget in BUDGETS
        for sampler in samplers
        if (steps := steps_within(model, sampler, budget)) is not None
    ]


def measure(bench: Bench, path: Path, question: Measurement, advanced: Callable[[int], None]) -> Result:
    """The answer in the CSV at `path`; measured and put there where there is none yet."""
    rows = read_rows(path)
    if question not in rows:
        rows[question] = bench.answer(question, advanced)
        write_rows(path, rows)
    return rows[question]


def digest(path: Path) -> str:
    """The first twelve digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _written(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _parsed(kind: type[Parsed], line: dict[str, str]) -> Parsed:
    readers: dict[str, Callable[[str], Any]] = {
        "str": str,
        "int": int,
        "float": float,
        "float | None": lambda text: float(text) if text else None,
    }
    return kind(**{field.name: readers[str(field.type)](line[field.name]) for field in fields(kind)})
