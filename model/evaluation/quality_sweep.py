"""Which measurements `make quality` takes, and how an interrupted sweep continues.

A result in the table is not measured again, and the table is rewritten atomically after each new
one: the sweep can be interrupted anywhere and continues from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from denoised.model.checkpoints.card_file import Defaults
from denoised.model.diffusion.guidance import is_guided
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.samplers import SAMPLERS
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
from denoised.model.serving.sampling import count_evaluations

BUDGETS = (4, 5, 6, 8, 10, 20)  # evaluations per image, those of guidance included
SWEPT_SPACINGS = ("geometric", "trailing")
HEADLINE_ACCURACY_SAMPLES, HEADLINE_SAMPLES = 2_000, 10_000
SWEEP_SAMPLES, EARLIER_SWEEP_SAMPLES = 2_000, 5_000  # the earlier sweep: trailing, unguided, at 5, 10 and 20
# What cards of trained models have where nothing was measured (`denoised train`), and what the bundled model had.
COMPARED = Defaults(sampler="dpmpp_2m", steps=20, guidance_scale=1.5)
COMPARED_SPACING, COMPARED_ARITHMETIC = "trailing", "bfloat16"


def headline_measurements(evaluator: Evaluator, arithmetic: str) -> list[Measurement]:
    """Noise, training images, and the model with its card's defaults and those of `COMPARED`.

    10,000 images for FID, 2,000 for everything else.
    """
    compared = [
        evaluator.model_measurement(
            COMPARED.sampler,
            COMPARED.steps,
            samples,
            guidance_scale=COMPARED.guidance_scale,
            levels=LevelChoice(COMPARED_SPACING),
            arithmetic=COMPARED_ARITHMETIC,
        )
        for samples in (HEADLINE_ACCURACY_SAMPLES, HEADLINE_SAMPLES)
    ]
    return [
        evaluator.baseline_measurement(NOISE, HEADLINE_SAMPLES),
        evaluator.baseline_measurement(TRAINING, HEADLINE_SAMPLES),
        evaluator.baseline_measurement(TRAINING, HEADLINE_ACCURACY_SAMPLES),
        evaluator.default_measurement(HEADLINE_ACCURACY_SAMPLES, arithmetic=arithmetic),
        evaluator.default_measurement(HEADLINE_SAMPLES, arithmetic=arithmetic),
        *compared,
    ]


def sweep_measurements(
    evaluator: Evaluator,
    model: PixelModel,
    samplers: Sequence[str],
    samples: int = SWEEP_SAMPLES,
    arithmetic: str = "float32",
) -> list[Measurement]:
    """Every sampler at each budget, with each of `SWEPT_SPACINGS`, guided as the card says and not at all.

    Small budgets first. A sampler of distilled models has levels of its own, so it is measured with these alone.
    """
    asked = (
        evaluator.model_measurement(
            sampler,
            steps,
            samples,
            guidance_scale=scale,
            guidance_interval=interval,
            levels=levels,
            arithmetic=arithmetic,
        )
        for budget in BUDGETS
        for scale, interval in swept_guidances(model.card.default)
        for sampler in samplers
        for levels in _swept_levels(sampler)
        if (steps := steps_within(model, sampler, budget, levels, scale, interval)) is not None
    )
    return list(dict.fromkeys(asked))  # a small change of the budget may allow no further step


def swept_guidances(default: Defaults) -> Iterator[tuple[float, tuple[float, float] | None]]:
    """Scale and interval: the card's, if it has guidance, and none."""
    if is_guided(default.guidance_scale):
        yield default.guidance_scale, default.guidance_interval
    yield 1.0, None


def _swept_levels(sampler: str) -> list[LevelChoice]:
    spacings: tuple[str | None, ...] = SWEPT_SPACINGS if SAMPLERS[sampler].takes_spacing else (None,)
    return [LevelChoice(spacing) for spacing in spacings]


def steps_within(
    model: PixelModel,
    sampler: str,
    budget: int,
    levels: LevelChoice,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> int | None:
    """The most steps of a sampler that take at most `budget` evaluations; None if even one step takes more."""
    most = None
    for steps in range(1, budget + 1):
        try:
            plan = model.plan(sampler, steps, 0.0, levels)
        except PlanError:  # the sampler needs more steps than this
            continue
        if count_evaluations(plan, guidance_scale, guidance_interval) <= budget:
            most = steps
    return most


def measure_once(evaluator: Evaluator, path: Path, measurement: Measurement, advance: Callable[[int], None]) -> Result:
    """The result in the table at `path`; measured and added to the table if it is not there yet."""
    results = read_results(path)
    if measurement not in results:
        results[measurement] = evaluator.measure(measurement, advance)
        write_results(path, results)
    return results[measurement]
