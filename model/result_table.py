"""Tables of measured results: CSV files with fixed columns, one result per line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from denoised.model.checkpoints.atomic import write_text_atomically

Key = TypeVar("Key")
Value = TypeVar("Value")


def read_table(
    path: Path,
    columns: Sequence[str],
    parse: Callable[[dict[str, str]], tuple[Key, Value]],
    failure: type[Exception],
) -> dict[Key, Value]:
    """The results so far, in the order of the lines; empty if there is no file.

    parse: one line, by column, as what was measured and its result.

    Raises:
        failure: if the columns differ, or a value cannot be parsed; names the line.
    """
    if not path.exists():
        return {}
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    if list(reader.fieldnames or ()) != list(columns):
        raise failure(f"{path}: columns are not {', '.join(columns)}: move the file away to start over")
    table: dict[Key, Value] = {}
    for line in reader:
        try:
            key, value = parse(line)
        except (AttributeError, TypeError, ValueError) as error:
            raise failure(f"{path}: line {reader.line_num}: {error}: remove the line") from error
        table[key] = value
    return table


def write_table(path: Path, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write all results, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    write_text_atomically(path, text.getvalue())
