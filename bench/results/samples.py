"""Measured values, one row of a CSV per quantity: what was measured, one sample per round, when, and on which machine.

The pages and plots are generated from these rows alone. Measuring a section again replaces its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.errors import BenchError
from bench.machine import Machine
from denoised.model.result_table import read_table, write_table

COLUMNS = (
    "section", "condition", "subject", "quantity", "samples", "date", "cpu", "cores", "isa", "torch"
)  # fmt: skip


@dataclass(frozen=True)
class SampleKey:
    """What was measured.

    condition: a load, a batch size, a number of clients, …
    subject: the program or network that was measured.
    quantity: with its unit.
    """

    section: str
    condition: str
    subject: str
    quantity: str


@dataclass(frozen=True)
class SampleSeries:
    """The samples of one quantity, in the order of the rounds, so that two series can be compared round by round."""

    samples: tuple[float, ...]
    date: str
    machine: Machine

    @property
    def median(self) -> float:
        return median(self.samples)


SampleTable = dict[SampleKey, SampleSeries]


class SampleRecorder:
    """Collects the samples of one section.

    values: (condition, subject, quantity) → samples so far.
    """

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str], list[float]] = {}

    def add(self, condition: object, subject: str, quantity: str, value: float) -> None:
        """Add a sample to a series."""
        self.values.setdefault((str(condition), subject, quantity), []).append(value)

    def table(self, section: str, date: str, machine: Machine) -> SampleTable:
        return {
            SampleKey(section, *key): SampleSeries(tuple(values), date, machine) for key, values in self.values.items()
        }


def replace_section(table: SampleTable, section: str, replacement: SampleTable) -> SampleTable:
    """The table with all rows of a section replaced."""
    return {key: series for key, series in table.items() if key.section != section} | replacement


def section_of(table: SampleTable, section: str) -> SampleTable:
    """The rows of one section."""
    return {key: series for key, series in table.items() if key.section == section}


def ratios(numerator: SampleSeries, denominator: SampleSeries) -> tuple[float, ...]:
    """Ratios taken round by round, so that whatever slows down a whole round cancels out."""
    return tuple(a / b for a, b in zip(numerator.samples, denominator.samples, strict=True))


def lowest(candidates: Iterable[SampleSeries]) -> SampleSeries:
    """The series with the lowest median.

    Raises:
        ValueError: if there are no candidates.
    """
    return min(candidates, key=lambda series: series.median)


def read_samples(path: Path) -> SampleTable:
    """The samples measured so far; empty if there is no file.

    Raises:
        BenchError: if the columns differ, or a value cannot be parsed; names the line.
    """
    return read_table(path, COLUMNS, _parse, BenchError)


def write_samples(path: Path, table: SampleTable) -> None:
    """Write all rows, atomically."""
    write_table(path, COLUMNS, [_format(key, series) for key, series in table.items()])


def _format(key: SampleKey, series: SampleSeries) -> Sequence[object]:
    machine = series.machine
    samples = " ".join(f"{sample:.6g}" for sample in series.samples)
    what = (key.section, key.condition, key.subject, key.quantity)
    return (*what, samples, series.date, machine.cpu, machine.cores, machine.isa, machine.torch)


def _parse(line: dict[str, str]) -> tuple[SampleKey, SampleSeries]:
    samples = tuple(float(sample) for sample in line["samples"].split())
    if not samples:
        raise ValueError("there are no samples")
    machine = Machine(line["cpu"], int(line["cores"]), line["isa"], line["torch"])
    key = SampleKey(line["section"], line["condition"], line["subject"], line["quantity"])
    return key, SampleSeries(samples, line["date"], machine)
