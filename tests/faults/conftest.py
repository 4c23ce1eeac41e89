"""Sites for the fault tests, and a way to report measurements."""

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
def report(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`report(name=figure, …)`: prints measurements under `pytest -s` and adds them to the test report."""

    def tell(**figures: Any) -> None:
        for name, figure in figures.items():
            record_property(name, str(figure))  # pytest-xdist transfers plain values only
        print("\n" + ", ".join(f"{name} {figure}" for name, figure in figures.items()), file=sys.stderr)  # noqa: T201

    return tell
