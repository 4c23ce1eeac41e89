"""The thread that deletes results of expired jobs goes on after an outage, and says once that it waits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.results.sweeper import JOBS, Sweeper


class Outage:
    """Results that cannot be reached at first; then there are more jobs than are looked at in one go."""

    def __init__(self) -> None:
        self.left = [StoreUnavailable("away"), StoreUnavailable("away"), RuntimeError("a defect"), JOBS, 3]
        self.calls = 0

    def delete_due(self, count: int) -> int:
        self.calls += 1
        found = self.left.pop(0) if self.left else 0
        if isinstance(found, Exception):
            raise found
        return int(found)


def test_it_goes_on_after_an_outage(wait_for: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    results: Any = Outage()
    sweeper = Sweeper(results, pause=0.01)
    with caplog.at_level(logging.WARNING):
        sweeper.start()
        wait_for(lambda: results.calls >= 7, "a few rounds")
        sweeper.stop()
        sweeper.join(10)
    assert not sweeper.is_alive()
    assert [line.getMessage() for line in caplog.records] == ["results of expired jobs are deleted later", "defect"]
