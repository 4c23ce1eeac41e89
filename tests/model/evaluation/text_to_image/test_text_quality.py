"""`make emoji`: a run becomes a model folder whose card and page say what was measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from denoised.model.__main__ import app
from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.text_to_image.judge import Judge, save_judge
from denoised.model.evaluation.text_to_image.text_evaluation import DrawingSettings, TextReport
from denoised.model.evaluation.text_to_image.text_quality_page import PageSubject, render_text_page
from denoised.model.evaluation.text_to_image.text_results import TextResult, best, read_text_results, write_text_results
from denoised.model.evaluation.text_to_image.text_scores import Agreement, Ranks

SAMPLES, SWEPT = 12, 6


def result(everything: float = 0.5, frechet: float = 10.0, **settings: object) -> TextResult:
    drawn = Agreement(SAMPLES, style=0.91, background=0.97, object=0.59, object_top5=0.83, everything=everything)
    report = TextReport(
        captions=SAMPLES,
        drawn=drawn,
        unseen_drawings=None,
        unseen_colors=drawn,
        shuffled=replace(drawn, style=0.2),
        real=replace(drawn, style=0.99),
        ranks=Ranks(candidates=25, median=3.0, first=0.25, near=0.75),
        frechet=frechet,
        trained_frechet=2.0,
        seconds=3.0,
    )
    given = {"sampler": "ddim", "steps": 20, "guidance_scale": 3.0, **settings}
    return TextResult("model", "judge", DrawingSettings(**given), report)  # type: ignore[arg-type]


def test_the_best_is_the_cheapest_of_those_that_are_about_as_right() -> None:
    slow, fast = result(0.60), result(0.585, steps=10)
    assert best([slow, fast]) is fast
    assert best([slow, result(0.57, steps=10)]) is slow, "two percent are worth ten steps"
    near = result(0.59, frechet=9.0, sampler="unipc")
    assert best([slow, near]) is near, "equal costs: the lower distance"
    assert best([result(0.60, guidance_scale=2.0), unguided := result(0.60, guidance_scale=1.0)]) is unguided


def test_results_survive_their_file_and_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert read_text_results(path) == []
    written = [result(), result(steps=10)]
    write_text_results(path, written)
    assert read_text_results(path) == written
    found = [each.answers("model", "judge", DrawingSettings("ddim", 10, 3.0, batch=5), SAMPLES) for each in written]
    assert found == [False, True], "the batch changes no picture"
    assert not written[0].answers("model", "judge", DrawingSettings("ddim", 20, 3.0, seed=1), SAMPLES)
    assert not written[0].answers("model", "another", written[0].settings, SAMPLES)
    assert not written[0].answers("model", "judge", written[0].settings, SAMPLES + 1)
    path.write_text('[{"model": "m"}]')
    with pytest.raises(EvaluationError, match="judge: is missing: move the file away"):
        read_text_results(path)


@pytest.fixture(scope="module")
def measured(run: Path, judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exported model, a judge, and what `quality-text` wrote."""
    folder = tmp_path_factory.mktemp("emoji")
    save_judge(folder / "judge", judge.network.state_dict(), judge.card)
    exported = CliRunner().invoke(app, ["export-text", "--run", str(run), "--out", str(folder / "emoji")])
    assert exported.exit_code == 0, exported.output
    assert "8 images: " in exported.output
    measure(run, folder)
    return folder


def measure(run: Path, folder: Path) -> str:
    options = ["--samples", str(SAMPLES), "--sweep-samples", str(SWEPT), "--out", str(folder / "docs")]
    where = ["--data", str(run), "--judge", str(folder / "judge"), "--model", str(folder / "emoji")]
    outcome = CliRunner().invoke(app, ["quality-text", *where, *options])
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_an_export_is_the_model_of_the_run_and_leaves_the_run_alone(run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    outcome = CliRunner().invoke(app, ["export-text", "--run", str(run), "--out", str(tmp_path / "model")])
    assert outcome.exit_code == 0, outcome.output
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    for path in (run / "model").rglob("*.safetensors"):
        mine = load_file(tmp_path / "model" / path.relative_to(run / "model"))
        assert all(value.equal(mine[name]) for name, value in load_file(path).items()), path
    assert read_card_file(tmp_path / "model") == read_card_file(run / "model")


def test_a_run_that_has_no_unet_yet_cannot_be_exported(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.json", tmp_path / "run")
    outcome = CliRunner().invoke(app, ["export-text", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert outcome.exit_code == 1
    assert "holds no checkpoint of a U-Net: train it with denoised train-text" in " ".join(outcome.output.split())


def test_the_card_has_the_chosen_defaults_and_the_figures(measured: Path, judge: Judge) -> None:
    card = read_card_file(measured / "emoji")
    sweep = read_text_results(measured / "docs" / "quality-emoji.json")
    chosen = best([each for each in sweep if each.report.captions == SWEPT]).settings
    assert (card.default.sampler, card.default.steps, card.default.guidance_scale) == (
        chosen.sampler,
        chosen.steps,
        chosen.guidance_scale,
    )
    assert card.default.steps <= 25
    assert (card.evaluation["captions"], card.evaluation["judge"]) == (SAMPLES, judge.digest)
    assert {"drawn", "shuffled", "real", "ranks", "frechet"} <= card.evaluation.keys()
    assert "CC-BY-4.0 (twemoji)" in card.license
    assert len(card.credits) == 6


def test_what_was_measured_is_not_measured_again(run: Path, measured: Path) -> None:
    before = (measured / "docs" / "quality-emoji.json").read_bytes()
    assert measure(run, measured) == "", "nothing new to report"
    assert (measured / "docs" / "quality-emoji.json").read_bytes() == before


def test_the_page_shows_the_measurement_the_sheet_and_the_sweep(measured: Path) -> None:
    page = (measured / "docs" / "quality-emoji.md").read_text()
    assert page.startswith("# Image quality of emoji\n\nGenerated by `make emoji` from [quality-emoji.json]")
    assert f"The model drew {SAMPLES} captions that it was never trained on" in page
    assert page.count("(default)") == 1
    assert page.count("| `dpmpp_2m`") == 7
    assert "](pictures/emoji.png)" in page
    with Image.open(measured / "docs" / "pictures" / "emoji.png") as sheet:
        assert sheet.size == (10 * 65 - 1, 2 * 65 - 1)


def test_the_page_says_which_targets_are_met(judge: Judge, run: Path) -> None:
    subject = PageSubject(
        name="emoji",
        card=read_card_file(run / "model"),
        judge=judge.card,
        main=result(),
        sweep=[result()],
        captions=["goat, noto style"],
        table="t.json",
        sheet="s.png",
    )
    page = render_text_page(subject)
    assert "style at least 90% (91.0%: met); background at least 95% (97.0%: met)" in page
    assert "object at least 60% (59.0%: not met); object, among five at least 80% (83.0%: met)" in page
    assert "median rank 3 (chance: 13), first in 25.0%" in page
    assert "| style | 91.0% | – | 91.0% | 20.0% | 99.0% |" in page
    assert json.dumps(subject.main.model)[1:-1] in page
