"""The first tables of `docs/quality.md`: the model with its card's defaults next to training images and noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from denoised.model.checkpoints.card_file import CardFile, Defaults
from denoised.model.evaluation.evaluator import default_levels
from denoised.model.evaluation.features import FeatureCard
from denoised.model.evaluation.quality_sweep import (
    COMPARED,
    COMPARED_ARITHMETIC,
    COMPARED_SPACING,
    HEADLINE_ACCURACY_SAMPLES,
    HEADLINE_SAMPLES,
)
from denoised.model.evaluation.quality_table import (
    MODEL,
    NOISE,
    TRAINING,
    Measurement,
    Result,
    Results,
    describe_sampling,
)

TARGET_FID = 0.02  # of that of noise, with 10,000 images
# Evaluations, FID and class accuracy of 2,000 images: a card that takes the best trade meets one of them.
BARS = ((12, 0.10, 0.96), (8, 0.08, 0.94))


@dataclass(frozen=True)
class ReportSubject:
    """What the report is about.

    name: of the model.
    weights, features: digests of the weights of the model and the feature network, as in the rows.
    samples: images for each row of the sweep.
    tuned_weights: of the model that was tuned to draw the same in fewer evaluations; empty if there is none.
    """

    name: str
    weights: str
    features: str
    model: CardFile
    space: FeatureCard
    samples: int
    tuned_weights: str = ""

    @property
    def default(self) -> Measurement:
        """A measurement of the card's defaults; samples, seed and arithmetic are those of the sweep."""
        own = self.model.default
        levels = default_levels(own)
        return replace(
            self._measurement(own, ""),
            spacing=levels.spacing or "",
            sigma_min=levels.sigma_min,
            sigma_max=levels.sigma_max,
            sigmas=levels.sigmas or (),
            guidance_interval=own.guidance_interval or (),
        )

    @property
    def compared(self) -> Measurement:
        """A measurement of the defaults of `COMPARED`."""
        return replace(self._measurement(COMPARED, COMPARED_ARITHMETIC), spacing=COMPARED_SPACING)

    def _measurement(self, own: Defaults, arithmetic: str) -> Measurement:
        how = (own.sampler, own.steps, 0.0, own.guidance_scale, self.samples, 0, arithmetic)
        return Measurement(MODEL, self.weights, self.features, *how)


def find_result(results: Results, asked: Measurement, samples: int) -> Result | None:
    """The result of a measurement with so many images, whatever the arithmetic."""
    wanted = replace(asked, samples=samples, arithmetic="")
    return next((result for m, result in results.items() if replace(m, arithmetic="") == wanted), None)


def render_headline(subject: ReportSubject, results: Results) -> str:
    """The first table, and which targets are met."""
    noise = find_result(results, baseline(subject, NOISE), HEADLINE_SAMPLES)
    lines = [
        "| images | number | evaluations | FID | relative to noise | KID | precision | recall | class accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            _headline_row(name, samples, find_result(results, asked, samples), noise)
            for name, asked, samples in _headline_rows(subject)
        ),
    ]
    return "\n".join(lines) + "\n\n" + _targets(subject, results, noise)


def baseline(subject: ReportSubject, source: str) -> Measurement:
    """A measurement of images that no model made."""
    return Measurement(source, "", subject.features, "", 0, 0.0, 0.0, subject.samples, 0, "")


def _headline_rows(subject: ReportSubject) -> Iterator[tuple[str, Measurement, int]]:
    default, compared = subject.default, subject.compared
    yield "uniform noise", baseline(subject, NOISE), HEADLINE_SAMPLES
    for samples in (HEADLINE_SAMPLES, HEADLINE_ACCURACY_SAMPLES):
        yield "training images", baseline(subject, TRAINING), samples
        yield f"the card's defaults: {describe_sampling(default)}", default, samples
        if replace(compared, arithmetic="") != default:
            yield f"the defaults before: {describe_sampling(compared)}", compared, samples


def _headline_row(name: str, count: int, result: Result | None, noise: Result | None) -> str:
    if result is None:
        return f"| {name} | {count:,} | not measured yet | | | | | | |"
    ratio = f"{result.fid / noise.fid:.3%}" if noise is not None else ""
    return f"| {name} | {count:,} | {result.evaluations or '–'} | {result.fid:.4g} | {ratio} | {other_scores(result)} |"


def other_scores(result: Result) -> str:
    """The cells of KID, precision, recall and class accuracy."""
    accuracy = f"{result.class_accuracy:.1%}" if result.class_accuracy is not None else "–"
    return f"{result.kid:.3g} ± {result.kid_std:.1g} | {result.precision:.3f} | {result.recall:.3f} | {accuracy}"


def _targets(subject: ReportSubject, results: Results, noise: Result | None) -> str:
    few = find_result(results, subject.default, HEADLINE_ACCURACY_SAMPLES)
    if few is None or few.class_accuracy is None:
        return "Whether the targets are met is not measured yet."
    bars = [
        f"at most {evaluations} evaluations at a FID of at most {fid:g} and a class accuracy of at least {share:.0%} "
        f"({is_met(few.evaluations <= evaluations and few.fid <= fid and few.class_accuracy >= share)})"
        for evaluations, fid, share in BARS
    ]
    text = (
        f"Targets, with the card's defaults and {HEADLINE_ACCURACY_SAMPLES:,} images: {', or '.join(bars)}. They take "
        f"{few.evaluations} evaluations, at a FID of {few.fid:.3g} and a class accuracy of {few.class_accuracy:.2%}."
    )
    many = find_result(results, subject.default, HEADLINE_SAMPLES)
    ratio = many.fid / noise.fid if many is not None and noise is not None else None
    found = f"{ratio:.3%}: {is_met(ratio < TARGET_FID)}" if ratio is not None else "not measured yet"
    return f"{text} The FID of {HEADLINE_SAMPLES:,} images is to be below {TARGET_FID:.0%} of that of noise ({found})."


def is_met(met: bool) -> str:
    """How the page says whether a target is met."""
    return "met" if met else "not met"


def render_classes(subject: ReportSubject, results: Results) -> str:
    """Precision and recall of each class, next to those of training images; empty if they are not measured yet."""
    few = HEADLINE_ACCURACY_SAMPLES
    real = find_result(results, baseline(subject, TRAINING), few)
    made = find_result(results, subject.default, few)
    if real is None or made is None or not real.class_precision or not made.class_precision:
        return ""
    columns = (real.class_precision, made.class_precision, real.class_recall, made.class_recall)
    rows = zip(subject.space.labels, *columns, strict=True)
    lines = [
        "## Each class by itself",
        "",
        f"Precision and recall of {few:,} images, each class against the test images of that class. Fewer images cover "
        "less, so these numbers are lower than those of all classes together: compare them with the training images'.",
        "",
        "| class | precision of training images | of the model | recall of training images | of the model |",
        "|---|---|---|---|---|",
        *(f"| {label} | " + " | ".join(f"{value:.3f}" for value in values) + " |" for label, *values in rows),
    ]
    return "\n".join(lines)
