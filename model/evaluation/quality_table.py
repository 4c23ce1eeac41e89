"""The results of measurements, one row of a CSV file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

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


@dataclass(frozen=True)
class Result:
    """The outcome of a measurement.

    evaluations: of the network, per image and guidance branch.
    fid, kid, kid_std, precision, recall, class_accuracy: as in `Scores`.
    seconds: time taken.
    """

    evaluations: int
    fid: float
    kid: float
    kid_std: float
    precision: float
    recall: float
    class_accuracy: float | None
    seconds: float


Results = dict[Measurement, Result]
Parsed = TypeVar("Parsed", Measurement, Result)
COLUMNS = tuple(field.name for kind in (Measurement, Result) for field in fields(kind))


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
    return f"{value:.6g}" if isinstance(value, float) else value


def _parse(kind: type[Parsed], line: dict[str, str]) -> Parsed:
    """The fields of `kind` from a line of the table, by their declared types."""
    parsers: dict[str, Callable[[str], Any]] = {
        "str": str,
        "int": int,
        "float": float,
        "float | None": lambda text: float(text) if text else None,
    }
    return kind(**{field.name: parsers[str(field.type)](line[field.name]) for field in fields(kind)})
