"""`denoised learn-levels`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from denoised.command_line.options import option
from denoised.model.checkpoints.card_file import CardFile, LearnedLevels, read_card_file, write_card_file
from denoised.model.command_line import report_errors
from denoised.model.diffusion.grids import noise_ratios
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.diffusion.spacings import RatioSpacing
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.cli_options import DataOption, DeviceOption, FeaturesOption
from denoised.model.evaluation.evaluator import Evaluator
from denoised.model.evaluation.features import FASHION_FEATURES
from denoised.model.evaluation.level_fitting.level_fit import fit_levels, gaussian_deviation
from denoised.model.progress import progress
from denoised.model.serving.pixel_model import PixelModel

START_SPACING = "geometric"
CHECKED_DEVIATIONS = (0.1, 0.25, 0.5, 1.0)  # of Gaussian data; those of pixels and latents are about ½ and 1


def learn_levels(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="the model folder; its card gets the levels")],
    data: DataOption,
    steps: Annotated[int, option("--steps", help="number of levels", min=1, max=100)],
    features: FeaturesOption = FASHION_FEATURES,
    sampler: Annotated[str, option("--sampler", help="the sampler that visits them")] = "unipc_3",
    images: Annotated[int, option("--images", help="images of each trial", min=4)] = 500,
    trials: Annotated[int, option("--trials", help="the most lists of levels that are measured", min=1)] = 100,
    seed: Annotated[int, option("--seed", help="seed of the first image of each trial", min=0)] = 1_000_000,
    check_images: Annotated[
        int, option("--check-images", help="images for comparing the result with the start, from seed 0 on", min=4)
    ] = 2_000,
    batch: Annotated[int, option("--batch", help="images per evaluation of the network", min=1)] = 50,
    writing: Annotated[
        bool, option("--write/--no-write", help="write the levels into the model's card if they are better")
    ] = True,
    device: DeviceOption = "cpu",
) -> None:
    """Fit the noise levels of a sampler to a model: those that make the smallest FID in a number of steps.

    Guidance is that of the model's card. The levels go into the card, and requests take them with the spacing learned.
    """
    with report_errors("learn-levels"):
        if sampler not in SAMPLERS or not SAMPLERS[sampler].takes_spacing:
            raise EvaluationError(f"--sampler {sampler}: not a sampler that takes noise levels")
        evaluator = Evaluator(data, features, model, device=device, batch=batch)
        subject, console = _Subject(evaluator, sampler, steps), Console()
        with progress(console, "trials", trials, "trials") as advance:
            fit = fit_levels(
                subject.start,
                lambda sigmas: subject.fid(sigmas, images, seed),
                subject.bounds,
                trials,
                lambda _: advance(1),
            )
        before, after = (subject.fid(sigmas, check_images, 0) for sigmas in (subject.start, fit.sigmas))
        _say(console, f"levels: {', '.join(f'{sigma:g}' for sigma in fit.sigmas)}")
        _say(console, f"FID of {check_images:,} other images: {START_SPACING} {before:.4g}, learned {after:.4g}")
        _say(console, subject.exactness(fit.sigmas))
        if after >= before:
            _say(console, "Not better than at the start, so nothing was written; try more trials or more images.")
        elif writing:
            write_card_file(model, with_learned_levels(read_card_file(model), sampler, fit.sigmas))
            _say(console, f'Written to the card of {model}; requests take them with "spacing": "learned".')


def with_learned_levels(card: CardFile, sampler: str, sigmas: tuple[float, ...]) -> CardFile:
    """The card with these levels, in the place of others for the same sampler and number of steps."""
    kept = [each for each in card.learned_levels if not each.fits(sampler, len(sigmas))]
    own = LearnedLevels(sampler=sampler, sigmas=list(sigmas))
    learned = sorted([*kept, own], key=lambda each: (each.sampler, len(each.sigmas)))
    return card.model_copy(update={"learned_levels": learned})


@dataclass(frozen=True)
class _Subject:
    """A model with the sampler and the number of steps that levels are fitted for, and guidance as its card says."""

    evaluator: Evaluator
    sampler: str
    steps: int

    @property
    def model(self) -> PixelModel:
        assert self.evaluator.model is not None
        return self.evaluator.model

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest level ρ of the schedule."""
        table = noise_ratios(self.model.schedule)
        return float(table[0]), float(table[-1])

    @property
    def start(self) -> tuple[float, ...]:
        """The levels of the first trial."""
        table = noise_ratios(self.model.schedule)
        return tuple(RatioSpacing(START_SPACING).ratios(table, self.steps, self.bounds[1], self.bounds[0]).tolist())

    def fid(self, sigmas: tuple[float, ...], images: int, seed: int) -> float:
        default = self.model.card.default
        measurement = self.evaluator.model_measurement(
            self.sampler,
            self.steps,
            images,
            guidance_scale=default.guidance_scale,
            guidance_interval=default.guidance_interval,
            levels=LevelChoice(sigmas=sigmas),
            seed=seed,
        )
        return self.evaluator.fid(measurement)

    def exactness(self, sigmas: tuple[float, ...]) -> str:
        """What the plan makes of Gaussian data with an exact network; an exact sampler keeps their deviation."""
        plan = self.model.plan(self.sampler, self.steps, 0.0, LevelChoice(sigmas=sigmas))
        found = ", ".join(f"{gaussian_deviation(plan, s):.3g} for {s:g}" for s in CHECKED_DEVIATIONS)
        return f"Standard deviation of Gaussian data with an exact network: {found}"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
