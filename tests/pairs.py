"""Parameters that a test draws from a product of values: what is quick, and what is slow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def every_pair(first: Sequence[Any], second: Sequence[Any], *others: Sequence[Any]) -> list[Any]:
    """The product of the values. Only one case for each pair of the first two is quick: the others' values take turns,
    so that each of them comes with each value of the first two. All other cases are slow tests."""
    cases = []
    for (i, a), (j, b) in product(enumerate(first), enumerate(second)):
        quick = tuple((i + j) % len(values) for values in others)
        for places in product(*(range(len(values)) for values in others)):
            rest = [values[k] for values, k in zip(others, places, strict=True)]
            cases.append(pytest.param(a, b, *rest, marks=() if places == quick else pytest.mark.slow))
    return cases
