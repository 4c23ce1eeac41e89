"""What the holder of an API key may use: the options after a key in the key file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from denoised.jobs.record import MAX_WEIGHT

MAX_COUNT = 10**12
OPERATOR = "operator"


class KeyOptionError(Exception):
    """An invalid option. The message names it, its value and what is allowed."""


@dataclass(frozen=True)
class KeyLimits:
    """The limits of one name; None is the server's own limit, or none where it has none.

    Attributes:
        weight: Callers that wait are served in proportion to it.
        jobs, evaluations: That may wait.
        per_minute, per_day: Evaluations that may be accepted in a minute and in a day of Redis' clock, UTC.
        images: Of jobs that wait, run or have succeeded, until they expire.
        operator: May see what all callers use.
    """

    weight: float = 1.0
    jobs: int | None = None
    evaluations: int | None = None
    per_minute: int | None = None
    per_day: int | None = None
    images: int | None = None
    operator: bool = False

    @classmethod
    def parse(cls, options: Iterable[str]) -> KeyLimits:
        """From texts such as `weight=2`, `per_day=100000` and `operator`.

        Raises:
            KeyOptionError: for an option that is unknown, stands twice, or has a wrong value.
        """
        values: dict[str, Any] = {}
        for option in options:
            name, separator, text = option.partition("=")
            if name in values:
                raise KeyOptionError(f"{name} stands twice")
            if option == OPERATOR:
                values[OPERATOR] = True
            elif name in COUNTS and separator:
                values[name] = _count(name, text)
            elif name == "weight" and separator:
                values[name] = _weight(text)
            else:
                allowed = ", ".join([f"{each}=" for each in ("weight", *COUNTS)])
                raise KeyOptionError(f"the option {option[:40]!r} is unknown (allowed: {allowed}, {OPERATOR})")
        return cls(**values)


COUNTS = tuple(each.name for each in fields(KeyLimits) if each.type == "int | None")


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or not text.isascii() or not 1 <= int(text[:20]) <= MAX_COUNT:
        raise KeyOptionError(f"{name} is {text[:40]!r} (allowed: 1 … {MAX_COUNT})")
    return int(text)


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 1 / MAX_WEIGHT <= weight <= MAX_WEIGHT:
        raise KeyOptionError(f"weight is {text[:40]!r} (allowed: {1 / MAX_WEIGHT} … {MAX_WEIGHT:g})")
    return weight
