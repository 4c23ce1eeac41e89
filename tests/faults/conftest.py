"""Sites for the fault tests, and where these write down what they measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.site import Site


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """`open_site(apis=…)`: a site without a worker yet."""
    with ExitStack() as stack:
        yield lambda **options: Site(tmp_path, stack, **options)


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    """One with one API."""
    return open_site()


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`told(name=figure, …)`: what was measured, printed with `pytest -s` and kept in the report."""

    def tell(**figures: Any) -> None:
        for name, figure in figures.items():
            record_property(name, str(figure))  # pytest-xdist transfers plain values only
        print("\n" + ", ".join(f"{name} {figure}" for name, figure in figures.items()), file=sys.stderr)  # noqa: T201

    return tell
