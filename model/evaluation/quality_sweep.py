"""Which measurements `make quality` takes, and how an interrupted sweep continues.

A result in the table is not measured again, and the table is rewritten atomically after each new
one: the sweep can be interrupted anywhere and continues from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from denoised.model.errors import PlanError
from denoised.model.evaluation.evaluator import Evaluator
from denoised.model.evaluation.quality_table import (
    NOISE,
    TRAINING,
    Measurement,
    Result,
    read_results,
    write_results,
)
from denoised.model.serving.pixel_model import PixelModel

BUDGETS = (5, 10, 20)  # evaluations per image
HEADLINE_ACCURACY_SAMPLES, HEADLINE_SAMPLES, FEW_TRAINING_IMAGES = 2_000, 10_000, 1_000
SWEEP_SAMPLES = 5_000


def headline_measurements(evaluator: Evaluator, model: PixelModel, arithmetic: str) -> list[Measurement]:
    """Noise, training images, and the model with its card's defaults (10,000 images for FID, 2,000 for accuracy)."""
    default = model.card.default
    return [
        evaluator.baseline_measurement(NOISE, HEADLINE_SAMPLES),
        evaluator.baseline_measurement(TRAINING, HEADLINE_SAMPLES),
        evaluator.baseline_measurement(TRAINING, FEW_TRAINING_IMAGES),
        *(
            evaluator.model_measurement(
                default.sampler, default.steps, samples, guidance_scale=default.guidance_scale, arithmetic=arithmetic
            )
            for samples in (HEADLINE_ACCURACY_SAMPLES, HEADLINE_SAMPLES)
        ),
    ]


def sweep_measurements(
    evaluator: Evaluator,
    model: PixelModel,
    samplers: Sequence[str],
    samples: int = SWEEP_SAMPLES,
    arithmetic: str = "float32",
) -> list[Measurement]:
    """Every sampler at each budget of evaluations, without guidance; small budgets first."""
    return [
        evaluator.model_measurement(sampler, steps, samples, arithmetic=arithmetic)
        for budget in BUDGETS
        for sampler in samplers
        if (steps := steps_within(model, sampler, budget)) is not None
    ]


def steps_within(model: PixelModel, sampler: str, budget: int) -> int | None:
    """The most steps of a sampler that take at most `budget` evaluations; None if even one step takes more."""
    most = None
    for steps in range(1, budget + 1):
        try:
            evaluations = model.plan(sampler, steps, 0.0).evaluations
        except PlanError:  # the sampler needs more steps than this
            continue
        if evaluations <= budget:
            most = steps
    return most


def measure_once(evaluator: Evaluator, path: Path, measurement: Measurement, advance: Callable[[int], None]) -> Result:
    """The result in the table at `path`; measured and added to the table if it is not there yet."""
    results = read_results(path)
    if measurement not in results:
        results[measurement] = evaluator.measure(measurement, advance)
        write_results(path, results)
    return results[measurement]
