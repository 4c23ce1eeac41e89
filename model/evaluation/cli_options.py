"""Options that several of the evaluation commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from denoised.command_line.options import option
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.image_generation import PRECISIONS

DataOption = Annotated[
    Path, option("--data", help="a folder with Fashion-MNIST's IDX files, or with one sub-folder of images per class")
]
FeaturesOption = Annotated[
    Path,
    option(
        "--features",
        help="a folder written by denoised train-features",
        show_default="the bundled one, for Fashion-MNIST",
    ),
]
PrecisionOption = Annotated[
    str, option("--precision", help=f"precision of the network's arithmetic: {', '.join(PRECISIONS)}")
]
DeviceOption = Annotated[str, option("--device", help="cpu, cuda or mps")]


def check_precision(precision: str) -> None:
    """Raise an EvaluationError for an unknown precision."""
    if precision not in PRECISIONS:
        raise EvaluationError(f"precision = {precision!r} is not known (known: {', '.join(PRECISIONS)})")


def parse_numbers(name: str, text: str | None, count: int | None = None) -> tuple[float, ...] | None:
    """The numbers of an option such as "0.2,2"; None if it is left out.

    Raises:
        EvaluationError: for other text, or another number of numbers.
    """
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (count is not None and len(numbers) != count):
        raise EvaluationError(f"{name} = {text!r} is not {count or 'a list of'} numbers separated by commas")
    return numbers
