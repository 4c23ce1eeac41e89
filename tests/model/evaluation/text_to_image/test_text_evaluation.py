"""`denoised evaluate-text`: closed forms, perfect and wrong pictures, and the command on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from denoised.model.__main__ import app
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.text_to_image.judge import Judge, Judgment, save_judge
from denoised.model.evaluation.text_to_image.text_evaluation import TextEvaluation, draw_combinations
from denoised.model.evaluation.text_to_image.text_scores import Agreement, agreement, rank_true_pictures
from denoised.model.training.emoji.emoji_pictures import EmojiPictures
from denoised.model.training.emoji.held_out import held_out_combinations

CAPTIONS = 40


def one_hot(classes: list[int], count: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float()


def test_agreement_is_the_fraction_of_right_answers() -> None:
    named = torch.arange(8.0).repeat(4, 1)  # the most likely object is 7, then 6, 5, 4, 3
    judgment = Judgment(torch.zeros(4, 2), (named, one_hot([0, 1, 2, 3], 5), one_hot([0, 0, 1, 1], 3)))
    answers = torch.tensor([[7, 3, 2, 7], [0, 1, 2, 0], [0, 1, 1, 1]])
    assert agreement(judgment, answers) == Agreement(
        pictures=4, style=0.75, background=0.75, object=0.5, object_top5=0.75, everything=0.25
    )


def test_the_rank_counts_the_drawings_that_are_nearer() -> None:
    candidates = torch.arange(20.0).view(20, 1, 1).repeat(1, 2, 1)  # (D, K, d)
    candidates[:, 1] += 100
    features = torch.tensor([[3.1], [103.1], [0.0]])
    drawings, backgrounds = torch.tensor([3, 5, 19]), torch.tensor([0, 1, 0])
    ranks = rank_true_pictures(features, candidates, drawings, backgrounds)
    # 103.1 is nearest to drawing 3, then 4, 2, 5.
    assert (ranks.candidates, ranks.median, ranks.first) == (20, 4.0, pytest.approx(1 / 3))
    assert ranks.near == pytest.approx(2 / 3)


@pytest.fixture
def evaluation(pictures: EmojiPictures, judge: Judge) -> TextEvaluation:
    return TextEvaluation(pictures, judge, CAPTIONS)


def test_captions_are_held_out_and_the_same_every_time(
    evaluation: TextEvaluation, pictures: EmojiPictures, judge: Judge
) -> None:
    assert held_out_combinations(pictures)[evaluation.combinations].all()
    assert len(set(evaluation.captions)) == CAPTIONS
    assert TextEvaluation(pictures, judge, CAPTIONS).captions == evaluation.captions
    assert TextEvaluation(pictures, judge, CAPTIONS, seed=1).captions != evaluation.captions


def test_true_pictures_get_the_best_scores(evaluation: TextEvaluation, pictures: EmojiPictures) -> None:
    report = evaluation.measure(pictures.on_colors(evaluation.combinations))
    assert report.drawn == report.real
    assert min(report.drawn.object, report.drawn.style, report.drawn.background) > 0.9
    assert (report.ranks.median, report.ranks.first, report.ranks.near) == (1.0, 1.0, 1.0)
    assert report.ranks.candidates == len(pictures)
    assert report.frechet == pytest.approx(0, abs=1e-3)
    assert report.trained_frechet > report.frechet
    assert report.shuffled.everything < 0.2


def test_the_groups_of_captions_add_up(evaluation: TextEvaluation, pictures: EmojiPictures) -> None:
    report = evaluation.measure(pictures.on_colors(evaluation.combinations))
    groups = [each for each in (report.unseen_drawings, report.unseen_colors) if each is not None]
    assert sum(each.pictures for each in groups) == CAPTIONS
    right = sum(each.pictures * each.object for each in groups)
    assert right == pytest.approx(CAPTIONS * report.drawn.object)


def test_pictures_of_something_else_get_bad_scores(evaluation: TextEvaluation) -> None:
    noise = torch.randint(0, 256, (CAPTIONS, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    report = evaluation.measure(noise)
    assert report.drawn.everything < 0.2
    assert report.ranks.first < 0.5
    assert report.frechet > report.trained_frechet


def test_a_judge_of_other_objects_is_refused(pictures: EmojiPictures, judge: Judge) -> None:
    other = Judge(judge.network, judge.card.model_copy(update={"objects": judge.card.objects[::-1]}))
    with pytest.raises(EvaluationError, match="which are not the 5 of the drawings: train one"):
        TextEvaluation(pictures, other, CAPTIONS)


def test_more_captions_than_there_are() -> None:
    with pytest.raises(EvaluationError, match="--samples 5 is over the 4 captions that are held out"):
        draw_combinations(np.arange(4), 5, 0)


def evaluate(run: Path, judge: Path, *arguments: str) -> tuple[int, str, str]:
    command = ["evaluate-text", "--data", str(run), "--judge", str(judge), "--model", str(run / "model")]
    result = CliRunner().invoke(app, [*command, "--samples", "12", "--steps", "2", "--batch", "5", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_reports_as_json_and_as_a_table(run: Path, judge: Judge, tmp_path: Path) -> None:
    save_judge(tmp_path / "judge", judge.network.state_dict(), judge.card)
    code, output, _ = evaluate(run, tmp_path / "judge", "--json", "--sheet", str(tmp_path / "sheet.png"))
    assert code == 0
    report = json.loads(output)
    assert (report["captions"], report["sampler"], report["steps"], report["judge"]) == (
        12,
        "dpmpp_2m",
        2,
        judge.digest,
    )
    assert report["real"]["background"] > report["drawn"]["everything"]
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (10 * 65 - 1, 2 * 65 - 1)
    code, again, _ = evaluate(run, tmp_path / "judge", "--json")
    assert {**json.loads(again), "seconds": 0} == {**report, "seconds": 0}
    code, table, _ = evaluate(run, tmp_path / "judge", "--guidance-scale", "1")
    assert code == 0
    assert "12 held-out captions, dpmpp_2m, 2 steps, guidance 1" in table
    assert "Fréchet distance" in table


def test_a_model_of_other_pictures_is_refused(repository: Path, run: Path, judge: Judge, tmp_path: Path) -> None:
    from tests.text_pipelines import save_pipeline

    save_judge(tmp_path / "judge", judge.network.state_dict(), judge.card)
    save_pipeline(tmp_path / "tiny")
    code, _, error = evaluate(run, tmp_path / "judge", "--model", str(tmp_path / "tiny"))
    assert code == 1
    assert error.strip().endswith("tiny draws pictures of 16×16×3, the judge knows 64×64×3")


def test_the_judge_is_trained_by_a_command_that_can_be_stopped(run: Path, tmp_path: Path) -> None:
    options = ("--images", "32", "--batch", "8", "--precision", "float32", "--warmup", "2", "--threads", "1")
    command = ["train-judge", "--data", str(run), "--out", str(tmp_path / "judge")]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "judge" / "model" / "judge.json").exists()
    card = json.loads((tmp_path / "judge" / "model" / "judge.json").read_text())
    assert card["training"]["images_seen"] == 32
    result = CliRunner().invoke(app, [*command, "--resume", "--images", "40"])
    assert result.exit_code == 0, result.output
    code, output, _ = evaluate(run, tmp_path / "judge" / "model", "--json")
    assert code == 0, output
