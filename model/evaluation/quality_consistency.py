"""The table of `docs/quality.md` about the model that was tuned to draw in one or two evaluations."""

from __future__ import annotations

from pathlib import Path

from denoised.model.checkpoints.folders import find_files
from denoised.model.checkpoints.weight_files import find_weights
from denoised.model.diffusion.samplers import CONSISTENCY
from denoised.model.evaluation.evaluator import Evaluator, digest
from denoised.model.evaluation.quality_headline import (
    ReportSubject,
    baseline,
    find_result,
    is_met,
    other_scores,
)
from denoised.model.evaluation.quality_sweep import HEADLINE_ACCURACY_SAMPLES
from denoised.model.evaluation.quality_table import MODEL, TRAINING, Measurement, Result, Results, describe_sampling

SUFFIX = "-consistency"
STEPS = (1, 2)
TARGET_FID, TARGET_ACCURACY = 0.25, 0.93  # of 2,000 images in two evaluations


def tuned_folder(model: Path) -> Path | None:
    """The folder of the tuned model, next to the model's own; None if there is none."""
    folder = model.parent / f"{model.name}{SUFFIX}"
    return folder if folder.is_dir() else None


def tuned_weights(model: Path) -> str:
    """The digest of the tuned model's weights, as in the rows of the table; empty if there is none."""
    folder = tuned_folder(model)
    return digest(find_weights(find_files(folder).weights)) if folder is not None else ""


def consistency_measurements(weights: str, features: str) -> list[Measurement]:
    """The tuned model in one and in two evaluations."""
    return [
        Measurement(MODEL, weights, features, CONSISTENCY, steps, 0.0, 1.0, HEADLINE_ACCURACY_SAMPLES, 0, "float32")
        for steps in STEPS
    ]


def missing_measurements(evaluator: Evaluator, model: Path, results: Results) -> list[Measurement]:
    """What `make quality` still has to measure of the tuned model."""
    weights = tuned_weights(model)
    asked = consistency_measurements(weights, evaluator.features) if weights else []
    return [measurement for measurement in asked if measurement not in results]


def render_consistency(subject: ReportSubject, results: Results) -> str:
    """The section; empty without a tuned model."""
    if not subject.tuned_weights:
        return ""
    few = HEADLINE_ACCURACY_SAMPLES
    rows = [
        ("training images", few, find_result(results, baseline(subject, TRAINING), few)),
        (f"{subject.name}: {describe_sampling(subject.default)}", few, find_result(results, subject.default, few)),
        *(
            (f"{subject.name}{SUFFIX}: {CONSISTENCY}, {_count(m.steps)}", m.samples, results.get(m))
            for m in consistency_measurements(subject.tuned_weights, subject.features)
        ),
    ]
    lines = [
        "## In one and two evaluations",
        "",
        f"`{subject.name}{SUFFIX}` was tuned by `denoised tune-consistency` to draw what `{subject.name}` draws by its "
        f"card's defaults ([train-your-own.md](train-your-own.md#one-or-two-evaluations)). Weights "
        f"`{subject.tuned_weights}`.",
        "",
        "| images | number | evaluations | FID | KID | precision | recall | class accuracy |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(name, count, result) for name, count, result in rows),
        "",
        _verdict(subject, results),
    ]
    return "\n".join(lines)


def _row(name: str, count: int, result: Result | None) -> str:
    if result is None:
        return f"| {name} | {count:,} | not measured yet | | | | | |"
    return f"| {name} | {count:,} | {result.evaluations or '–'} | {result.fid:.4g} | {other_scores(result)} |"


def _count(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _verdict(subject: ReportSubject, results: Results) -> str:
    found = results.get(consistency_measurements(subject.tuned_weights, subject.features)[-1])
    target = (
        f"Target, with {HEADLINE_ACCURACY_SAMPLES:,} images in two evaluations: a FID of at most {TARGET_FID:g} and a "
        f"class accuracy of at least {TARGET_ACCURACY:.0%}"
    )
    if found is None or found.class_accuracy is None:
        return f"{target} (not measured yet)."
    return f"{target} ({is_met(found.fid <= TARGET_FID and found.class_accuracy >= TARGET_ACCURACY)})."
