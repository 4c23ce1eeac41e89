"""Measured figures, one row of a CSV each: what was measured, one sample a round, on which machine and when.

The page and its plots are made from these rows alone. A section that is measured again replaces its own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.errors import BenchError
from bench.machine import Machine
from denoised.model.checkpoints.atomic import write_text_atomically

COLUMNS = (
    "section", "condition", "subject", "quantity", "samples", "date", "cpu", "cores", "isa", "torch"
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """condition: a load, a batch size, …; subject: whose figure it is; quantity: with its unit."""

    section: str
    condition: str
    subject: str
    quantity: str


@dataclass(frozen=True)
class Figure:
    """samples: in the order of the rounds, so that two figures of a section can be compared round by round."""

    samples: tuple[float, ...]
    date: str
    machine: Machine

    @property
    def median(self) -> float:
        return median(self.samples)


Figures = dict[Key, Figure]


class Samples:
    """What a section finds, as it finds it."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str], list[float]] = {}

    def add(self, condition: object, subject: str, quantity: str, value: float) -> None:
        """One more sample of a figure."""
        self.found.setdefault((str(condition), subject, quantity), []).append(value)

    def figures(self, section: str, date: str, machine: Machine) -> Figures:
        return {Key(section, *what): Figure(tuple(values), date, machine) for what, values in self.found.items()}


def replace_section(figures: Figures, section: str, by: Figures) -> Figures:
    """All of them, those of a section replaced."""
    return {key: figure for key, figure in figures.items() if key.section != section} | by


def section_of(figures: Figures, section: str) -> Figures:
    """Those of one section."""
    return {key: figure for key, figure in figures.items() if key.section == section}


def ratios(above: Figure, below: Figure) -> tuple[float, ...]:
    """Round by round: what both had to suffer in a round cancels."""
    return tuple(a / b for a, b in zip(above.samples, below.samples, strict=True))


def least(candidates: Iterable[Figure]) -> Figure:
    """The one with the least median: the fastest, of times.

    Raises:
        ValueError: when there is none.
    """
    return min(candidates, key=lambda figure: figure.median)


def read_figures(path: Path) -> Figures:
    """What was measured before; nothing when there is no file.

    Raises:
        BenchError: for a file of other columns or with a value that is none; names the line.
    """
    if not path.exists():
        return {}
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise BenchError(f"{path}: columns are not {', '.join(COLUMNS)}: move the file away to measure anew")
    figures: Figures = {}
    for line in reader:
        try:
            key, figure = _parsed(line)
        except (AttributeError, TypeError, ValueError) as error:
            raise BenchError(f"{path}: line {reader.line_num}: {error}: remove the line") from error
        figures[key] = figure
    return figures


def write_figures(path: Path, figures: Figures) -> None:
    """All of them; the file appears whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, figure in figures.items():
        writer.writerow(_written(key, figure))
    write_text_atomically(path, text.getvalue())


def _written(key: Key, figure: Figure) -> Sequence[object]:
    machine = figure.machine
    samples = " ".join(f"{sample:.6g}" for sample in figure.samples)
    what = (key.section, key.condition, key.subject, key.quantity)
    return (*what, samples, figure.date, machine.cpu, machine.cores, machine.isa, machine.torch)


def _parsed(line: dict[str, str]) -> tuple[Key, Figure]:
    samples = tuple(float(sample) for sample in line["samples"].split())
    if not samples:
        raise ValueError("there are no samples")
    machine = Machine(line["cpu"], int(line["cores"]), line["isa"], line["torch"])
    key = Key(line["section"], line["condition"], line["subject"], line["quantity"])
    return key, Figure(samples, line["date"], machine)
