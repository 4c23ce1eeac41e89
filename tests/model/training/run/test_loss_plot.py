"""The loss plot of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denoised.model.training.run.loss_plot import centered_mean, loss_figure, plot_loss, read_metrics

CSV = """step,images,loss,grad_norm,learning_rate,images_per_second
100,6400,0.8,1.0,1.000e-03,900.0
200,12800,0.4,0.5,5.000e-04,901.5
300,19200,0.2,0.4,2.500e-04,899.0
"""


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text(CSV)
    return path


def test_the_columns_are_read_as_numbers(metrics: Path) -> None:
    columns = read_metrics(metrics)
    assert columns["images"] == [6400, 12800, 19200]
    assert columns["loss"] == [0.8, 0.4, 0.2]
    assert columns["learning_rate"] == [1e-3, 5e-4, 2.5e-4]


def test_the_smoothed_loss_is_a_centered_moving_average() -> None:
    assert centered_mean([3.0, 3.0, 3.0]) == [3.0, 3.0, 3.0]
    assert centered_mean([0.0, 0.0, 9.0, 0.0, 0.0], reach=1) == [0.0, 3.0, 3.0, 3.0, 0.0]
    line = [1.0 - 0.1 * k for k in range(9)]
    assert centered_mean(line) == pytest.approx(line), "a straight line is unchanged"


def test_the_plot_shows_the_raw_and_smoothed_loss_and_the_rate_on_a_second_axis(metrics: Path) -> None:
    left, right = loss_figure(read_metrics(metrics)).axes
    raw, smoothed = left.lines
    assert raw.get_xydata().tolist() == [[6400, 0.8], [12800, 0.4], [19200, 0.2]]
    assert list(smoothed.get_ydata()) == centered_mean([0.8, 0.4, 0.2])
    (rate,) = right.lines
    assert list(rate.get_ydata()) == [1e-3, 5e-4, 2.5e-4]
    assert left.get_yscale() == "log"
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "loss as logged",
        "smoothed",
        "learning rate",
    ]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("images seen", "loss", "learning rate")


def test_a_plot_of_a_single_line_works(metrics: Path) -> None:
    metrics.write_text("".join(CSV.splitlines(keepends=True)[:2]))
    plot_loss(metrics, metrics.with_name("loss.png"))
    with Image.open(metrics.with_name("loss.png")) as picture:
        assert picture.size == (960, 540)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10, "something is drawn"
