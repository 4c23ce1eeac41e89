"""Progress: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from denoised.model.progress import progress


def test_without_a_terminal_progress_is_a_line_every_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("denoised.model.progress.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=30)
    with progress(console, "a measurement with a long name", 3_000, "pictures") as advance:
        for second in (10.0, 31.0, 40.0, 62.0):
            now[0] = second
            advance(500)
    assert console.file.getvalue().splitlines() == [
        "a measurement with a long name: 1,000 of 3,000 pictures",
        "a measurement with a long name: 2,000 of 3,000 pictures",
    ]


def test_on_a_terminal_progress_is_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress(console, "noise", 30, "pictures") as advance:
        advance(30)
    drawn = console.file.getvalue()
    assert "30/30" in drawn
    assert "pictures" in drawn
