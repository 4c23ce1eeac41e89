"""What was measured of text-to-image models, in one JSON file, and which settings are the best of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from denoised.command_line.rejected_values import describe_error
from denoised.model.checkpoints.atomic import write_text_atomically
from denoised.model.checkpoints.card_file import Defaults
from denoised.model.errors import EvaluationError, abbreviate
from denoised.model.evaluation.text_to_image.text_evaluation import DrawingSettings, TextReport

SWEPT_SAMPLER, SWEPT_STEPS = "dpmpp_2m", 20
SWEPT_GUIDANCE = (1.0, 2.0, 3.0, 4.5, 6.0)
SWEPT_SAMPLERS = (("dpmpp_2m", 12), ("unipc", 12), ("ddim", 20), ("euler_a", 20), ("dpmpp_2m", 25))
NEGLIGIBLE = 0.02  # of the captions: less than the sampling error of a few hundred


@dataclass(frozen=True)
class TextResult:
    """One measurement.

    Attributes:
        model, judge: digests.
        settings: how the pictures were drawn.
        report: what came of it.
    """

    model: str
    judge: str
    settings: DrawingSettings
    report: TextReport

    def answers(self, model: str, judge: str, settings: DrawingSettings, captions: int) -> bool:
        """Whether it is the measurement of these captions; the batch changes no picture."""
        mine, others = self.settings, settings
        same = (mine.sampler, mine.steps, mine.guidance_scale, mine.seed)
        return (self.model, self.judge, self.report.captions) == (model, judge, captions) and same == (
            others.sampler,
            others.steps,
            others.guidance_scale,
            others.seed,
        )


_LIST = TypeAdapter(list[TextResult])


def read_text_results(path: Path) -> list[TextResult]:
    """The results in a file; none if there is no file.

    Raises:
        EvaluationError: if the file is not one of `write_text_results`.
    """
    if not path.exists():
        return []
    try:
        return _LIST.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        cause = describe_error(first, abbreviate(first["input"]))
        raise EvaluationError(f"{path}: {where}: {cause}: move the file away to start over") from error


def write_text_results(path: Path, results: Sequence[TextResult]) -> None:
    """Write all results, atomically."""
    write_text_atomically(path, _LIST.dump_json(list(results), indent=1).decode() + "\n")


def guidance_sweep() -> list[DrawingSettings]:
    """The first half of the sweep: guidance scales."""
    return [DrawingSettings(SWEPT_SAMPLER, SWEPT_STEPS, scale) for scale in SWEPT_GUIDANCE]


def sampler_sweep(guidance_scale: float) -> list[DrawingSettings]:
    """The second half: samplers and step counts at the guidance scale that the first half chose."""
    return [DrawingSettings(sampler, steps, guidance_scale) for sampler, steps in SWEPT_SAMPLERS]


def best(results: Sequence[TextResult]) -> TextResult:
    """The one with the fewest evaluations, then the lowest Fréchet distance, of those that are about as right as any.

    That is: object, style and background are right in at most `NEGLIGIBLE` fewer of the pictures than in the best.
    """
    most = max(each.report.drawn.everything for each in results)
    good = [each for each in results if each.report.drawn.everything >= most - NEGLIGIBLE]
    return min(good, key=lambda each: (_evaluations(each.settings), each.report.frechet))


def defaults_of(settings: DrawingSettings) -> Defaults:
    """The settings as the defaults of a card."""
    return Defaults(sampler=settings.sampler, steps=settings.steps, guidance_scale=settings.guidance_scale)


def _evaluations(settings: DrawingSettings) -> int:
    return settings.steps * (1 if settings.guidance_scale == 1.0 else 2)
