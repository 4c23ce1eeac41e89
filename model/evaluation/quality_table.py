"""The results of measurements, one row of a CSV file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from denoised.model.diffusion.guidance import is_guided
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.errors import EvaluationError
from denoised.model.result_table import read_table, write_table

MODEL, TRAINING, NOISE = "model", "training images", "uniform noise"  # sources of images


@dataclass(frozen=True)
class Measurement:
    """What to measure.

    source: MODEL, TRAINING or NOISE; without a model, the sampler is empty and its settings are 0.
    weights, features: the first digits of the SHA-256 of the model's and the feature network's weights.
    samples: number of images.
    arithmetic: precision of the network.
    spacing: of the noise levels; empty: the model's own.
    sigma_min, sigma_max: the lowest and the highest level ρ = σ/α; None: those of the spacing.
    sigmas: the levels themselves, in six digits, instead of all of these; empty if they are not named.
    guidance_interval: the levels (low, high] at which guidance is on; empty: all.
    """

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
    spacing: str = ""
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigmas: tuple[float, ...] = ()
    guidance_interval: tuple[float, ...] = ()

    @property
    def levels(self) -> LevelChoice:
        """The noise levels that the images are made at."""
        return LevelChoice(self.spacing or None, None, self.sigma_min, self.sigma_max, self.sigmas or None)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The levels at which guidance is on; None: all."""
        return (self.guidance_interval[0], self.guidance_interval[1]) if self.guidance_interval else None


@dataclass(frozen=True)
class Result:
    """The outcome of a measurement.

    evaluations: of the network, per image; guidance costs another one wherever it is on.
    fid, kid, kid_std, precision, recall, class_accuracy: as in `Scores`.
    seconds: time taken.
    class_precision, class_recall: of each class, as in `Scores`; empty if no classes were requested.
    """

    evaluations: int
    fid: float
    kid: float
    kid_std: float
    precision: float
    recall: float
    class_accuracy: float | None
    seconds: float
    class_precision: tuple[float, ...] = ()
    class_recall: tuple[float, ...] = ()


Results = dict[Measurement, Result]
Parsed = TypeVar("Parsed", Measurement, Result)
COLUMNS = tuple(field.name for kind in (Measurement, Result) for field in fields(kind))


def describe(measurement: Measurement) -> str:
    """One line for people: "5,000 by unipc_3, 6 steps geometric, guidance 2 in 0.2 … 2, float32"."""
    if measurement.source != MODEL:
        return f"{measurement.samples:,} of {measurement.source}"
    return f"{measurement.samples:,} by {describe_sampling(measurement)}, {measurement.arithmetic}"


def describe_sampling(measurement: Measurement) -> str:
    """How the images are made: "unipc_3, 6 steps geometric, guidance 2 in 0.2 … 2"."""
    bounds = [f"{sigma:g}" if sigma is not None else "" for sigma in (measurement.sigma_max, measurement.sigma_min)]
    parts = [measurement.spacing, f"from {bounds[0]} to {bounds[1]}" if any(bounds) else ""]
    if measurement.sigmas:
        parts = ["of " + " ".join(f"{sigma:g}" for sigma in measurement.sigmas)]
    text = " ".join([f"{measurement.sampler}, {measurement.steps} steps", *filter(None, parts)])
    guidance = describe_guidance(measurement)
    return f"{text}, guidance {guidance}" if guidance else text


def describe_guidance(measurement: Measurement) -> str:
    """Scale and interval of the guidance, "2 in 0.2 … 2"; empty without guidance."""
    if not is_guided(measurement.guidance_scale):
        return ""
    interval = measurement.interval
    within = f" in {interval[0]:g} … {interval[1]:g}" if interval is not None else ""
    return f"{measurement.guidance_scale:g}{within}"


def read_results(path: Path) -> Results:
    """The results measured so far; empty if there is no file.

    Raises:
        EvaluationError: if the columns differ, or a value cannot be parsed; names the line.
    """
    return read_table(path, COLUMNS, lambda line: (_parse(Measurement, line), _parse(Result, line)), EvaluationError)


def write_results(path: Path, results: Results) -> None:
    """Write all results in their order, atomically."""
    rows = ((*astuple(measurement), *astuple(result)) for measurement, result in results.items())
    write_table(path, COLUMNS, [[_format(value) for value in row] for row in rows])


def _format(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " ".join(f"{number:.6g}" for number in value)
    return f"{value:.6g}" if isinstance(value, float) else value


def _parse(kind: type[Parsed], line: dict[str, str]) -> Parsed:
    """The fields of `kind` from a line of the table, by their declared types."""
    parsers: dict[str, Callable[[str], Any]] = {
        "str": str,
        "int": int,
        "float": float,
        "float | None": lambda text: float(text) if text else None,
        "tuple[float, ...]": lambda text: tuple(map(float, text.split())),
    }
    return kind(**{field.name: parsers[str(field.type)](line[field.name]) for field in fields(kind)})
