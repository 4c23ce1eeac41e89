"""The section of the quality page about the model that was tuned to draw in one or two evaluations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from denoised.model.checkpoints.card_file import CardFile, Defaults
from denoised.model.evaluation.features import FeatureCard
from denoised.model.evaluation.quality_consistency import consistency_measurements, render_consistency, tuned_weights
from denoised.model.evaluation.quality_headline import ReportSubject
from denoised.model.evaluation.quality_table import MODEL, Result, Results, read_results
from tests.model_commands import run_command

RESULT = Result(2, 0.2, 0.5, 0.125, 0.75, 0.25, 0.95, 3.0)
CARD = FeatureCard(labels=["a", "b"], image_shape=(1, 8, 8), widths=[4], test_accuracy=0.9, test_images=50)
SUBJECT = ReportSubject("boots", "aa", "bb", CardFile(default=Defaults()), CARD, samples=100, tuned_weights="cc")


def rows(fid: float, accuracy: float) -> Results:
    return {
        each: replace(RESULT, evaluations=each.steps, fid=fid, class_accuracy=accuracy)
        for each in consistency_measurements("cc", "bb")
    }


@pytest.mark.parametrize(
    ("fid", "accuracy", "verdict"), [(0.25, 0.93, "met"), (0.26, 0.93, "not met"), (0.25, 0.92, "not met")]
)
def test_the_target_is_that_of_two_evaluations_and_two_thousand_images(
    fid: float, accuracy: float, verdict: str
) -> None:
    one, two = consistency_measurements("cc", "bb")
    assert (one.steps, two.steps, two.samples) == (1, 2, 2_000)
    found = rows(0.1, 0.99) | {two: replace(RESULT, fid=fid, class_accuracy=accuracy)}
    text = render_consistency(SUBJECT, found)
    assert text.endswith(f"a FID of at most 0.25 and a class accuracy of at least 93% ({verdict}).")
    assert f"| boots-consistency: consistency, 2 steps | 2,000 | 2 | {fid:g} |" in text
    assert "| boots-consistency: consistency, 1 step | 2,000 | 1 | 0.1 |" in text


def test_without_measurements_or_without_a_tuned_model_it_says_so() -> None:
    assert render_consistency(SUBJECT, {}).count("not measured yet") == 5
    assert render_consistency(SUBJECT, dict.fromkeys(consistency_measurements("dd", "bb"), RESULT)).endswith(
        "(not measured yet)."
    )
    assert render_consistency(replace(SUBJECT, tuned_weights=""), rows(0.1, 0.99)) == ""


def test_the_command_measures_the_model_beside_the_one_that_it_is_given(
    data: Path, features: Path, folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, count in (
        ("quality_sweep", "HEADLINE_SAMPLES", 12),
        ("quality_sweep", "HEADLINE_ACCURACY_SAMPLES", 8),
        ("quality_consistency", "HEADLINE_ACCURACY_SAMPLES", 8),
    ):
        monkeypatch.setattr(f"denoised.model.evaluation.{module}.{name}", count)
    model = folder(prediction_type="v_prediction", labels=("0", "1", "2"))
    tuned = Path(shutil.copytree(model, tmp_path / "boots-consistency"))
    card = json.loads((tuned / "model_card.json").read_text())
    (tuned / "model_card.json").write_text(json.dumps({**card, "consistency_levels": [40.0, 1.1]}))
    out = tmp_path / "docs"
    command = ("quality", "--data", data, "--features", features, "--model", model, "--out", out, "--samples", 9)
    done = run_command(*command, "--samplers", "ddim")
    assert done.exit_code == 0, done.output
    made = {
        (each.steps, each.samples): result.evaluations
        for each, result in read_results(out / "quality.csv").items()
        if (each.source, each.weights, each.sampler) == (MODEL, tuned_weights(model), "consistency")
    }
    assert made == {(1, 8): 1, (2, 8): 2}
    assert "## In one and two evaluations" in (out / "quality.md").read_text()
