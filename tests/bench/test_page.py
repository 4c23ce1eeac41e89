"""docs/performance.md says what docs/performance.csv says, and docs/performance-cuda.md what its own does."""

from __future__ import annotations

from pathlib import Path

from bench import accelerator_page
from bench.figures import read_figures
from bench.report import BATCH_PLOT, CLIENTS_PLOT, DOCUMENT, SIZE_PLOT, TABLE, document


def test_the_page_is_what_its_figures_render(repository: Path) -> None:
    docs = repository / "docs"
    assert (docs / DOCUMENT).read_text() == document(read_figures(docs / TABLE))


def test_the_plots_of_the_page_are_there(repository: Path) -> None:
    for path in (CLIENTS_PLOT, BATCH_PLOT, SIZE_PLOT):
        assert 2_000 < (repository / "docs" / path).stat().st_size < 100_000


def test_the_page_of_the_accelerator_is_what_its_figures_render(repository: Path) -> None:
    docs, page = repository / "docs", accelerator_page
    assert (docs / page.DOCUMENT).read_text() == page.document(read_figures(docs / page.TABLE))
