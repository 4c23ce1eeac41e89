"""docs/performance.md and docs/performance-cuda.md are generated from their CSV files."""

from __future__ import annotations

from pathlib import Path

from bench.accelerator import page as accelerator_report
from bench.results.report import BATCH_PLOT, CLIENTS_PLOT, DOCUMENT, SIZE_PLOT, TABLE, render_page
from bench.results.samples import read_samples


def test_the_page_is_generated_from_its_samples(repository: Path) -> None:
    docs = repository / "docs"
    assert (docs / DOCUMENT).read_text() == render_page(read_samples(docs / TABLE))


def test_the_plots_of_the_page_exist(repository: Path) -> None:
    for path in (CLIENTS_PLOT, BATCH_PLOT, SIZE_PLOT):
        assert 2_000 < (repository / "docs" / path).stat().st_size < 100_000


def test_the_page_of_the_accelerator_is_generated_from_its_samples(repository: Path) -> None:
    docs, page = repository / "docs", accelerator_report
    assert (docs / page.DOCUMENT).read_text() == page.render_accelerator_page(read_samples(docs / page.TABLE))
