"""The CSV of measurements, what is measured, and what is written about it."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from typer.testing import Result as CliResult

from denoised.model.__main__ import app
from denoised.model.checkpoints.card_file import CardFile, Defaults, read_card_file
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.feature_training import FeatureTraining, train_features
from denoised.model.evaluation.features import FASHION_FEATURES, WEIGHTS, FeatureCard, load_features, save_features
from denoised.model.evaluation.quality import (
    BUDGETS,
    MODEL,
    NOISE,
    SWEEP_SAMPLES,
    TRAINING,
    Bench,
    Measurement,
    Result,
    Rows,
    class_indices,
    digest,
    headline,
    measure,
    read_rows,
    steps_within,
    sweep,
    write_rows,
)
from denoised.model.evaluation.quality_report import Subject, apart, document, write_report
from denoised.model.networks.config import UNetConfig
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.training.data import Dataset

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
QUESTION = Measurement(MODEL, "aa", "bb", "ddim", 5, 0.0, 1.5, 100, 7, "float32")
ANSWER = Result(5, 1.25, 0.5, 0.125, 0.75, 0.25, 0.5, 3.0)


@pytest.fixture
def data(tmp_path: Path, dataset: Dataset) -> Path:
    """The stripes as IDX files; the test images are the training images."""
    folder = tmp_path / "stripes"
    folder.mkdir()
    for name, values in (("images-idx3", dataset.images[:, 0]), ("labels-idx1", dataset.classes.to(torch.uint8))):
        array = values.numpy()
        content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        for split in ("train", "t10k"):
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def features(tmp_path: Path, dataset: Dataset) -> Path:
    config = FeatureTraining(epochs=20, batch=10, shift=0, learning_rate=1e-2)
    named = dataclasses.replace(dataset, labels=("0", "1", "2"))
    save_features(tmp_path / "space", train_features(named, named, config))
    return tmp_path / "space"


def invoke(*arguments: object) -> CliResult:
    """A command of `python -m model`, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "quality.csv"
    rows: Rows = {
        QUESTION: ANSWER,
        dataclasses.replace(QUESTION, seed=8): dataclasses.replace(ANSWER, class_accuracy=None),
    }
    assert read_rows(path) == {}
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda text: text.replace("sampler,", "solver,"), "columns are not source, weights, features, sampler"),
        (lambda text: text.replace("1.25", "low"), "line 2: could not convert string to float: 'low'"),
        (lambda text: text[: text.index("0.125")] + "\n", "line 2: "),
    ],
)
def test_a_spoilt_table_is_refused(tmp_path: Path, spoil: Callable[[str], str], expected: str) -> None:
    path = tmp_path / "quality.csv"
    write_rows(path, {QUESTION: ANSWER})
    path.write_text(spoil(path.read_text()))
    with pytest.raises(EvaluationError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_steps_are_as_many_as_the_budget_of_evaluations_allows(folder: Callable[..., Path]) -> None:
    model = load_model(folder())
    assert [steps_within(model, "ddim", budget) for budget in BUDGETS] == [5, 10, 20]
    assert [steps_within(model, "heun", budget) for budget in BUDGETS] == [3, 5, 10]  # 2N − 1 evaluations
    for sampler in SAMPLERS:
        for budget in BUDGETS:
            steps = steps_within(model, sampler, budget)
            assert steps is None or model.plan(sampler, steps, 0.0).evaluations <= budget


def test_the_sweep_asks_for_every_sampler_at_every_budget(
    data: Path, features: Path, folder: Callable[..., Path]
) -> None:
    bench = Bench(data, features, folder())
    assert bench.model is not None
    asked = sweep(bench, bench.model, list(SAMPLERS), samples=12)
    assert {q.sampler for q in asked} == set(SAMPLERS)
    assert {(q.source, q.guidance_scale, q.eta, q.samples) for q in asked} == {(MODEL, 1.0, 0.0, 12)}
    assert len(set(asked)) == len(asked)
    at_the_top = headline(bench, bench.model, "bfloat16")
    assert [(q.source, q.samples) for q in at_the_top] == [
        (NOISE, 10_000),
        (TRAINING, 10_000),
        (TRAINING, 1_000),
        (MODEL, 2_000),
        (MODEL, 10_000),
    ]


def test_what_was_measured_is_not_measured_again(
    data: Path, features: Path, folder: Callable[..., Path], tmp_path: Path
) -> None:
    bench = Bench(data, features, folder(), batch=8)
    path = tmp_path / "quality.csv"
    question = bench.question("euler_a", 3, 12, guidance_scale=2.0)
    told: list[int] = []
    first = measure(bench, path, question, told.append)
    assert told == [8, 4]
    assert first.evaluations == 3
    assert first.class_accuracy is not None
    again = measure(bench, path, question, told.append)
    assert told == [8, 4], "nothing was generated"
    assert again == read_rows(path)[question]
    other = measure(bench, path, dataclasses.replace(question, seed=1), told.append)
    assert other.fid != first.fid
    assert list(read_rows(path)) == [question, dataclasses.replace(question, seed=1)]


def test_the_same_question_has_the_same_answer(data: Path, features: Path, folder: Callable[..., Path]) -> None:
    first, second = (Bench(data, features, folder()) for _ in range(2))
    question = first.question("ddim", 2, 12)
    answers = [dataclasses.replace(bench.answer(question), seconds=0.0) for bench in (first, second)]
    assert answers[0] == answers[1]


def test_other_weights_are_another_question(data: Path, features: Path, folder: Callable[..., Path]) -> None:
    path = folder()
    before = Bench(data, features, path).question("ddim", 2, 12)
    assert before.weights == digest(path / UNET_WEIGHTS)
    assert before.features == digest(features / WEIGHTS)
    (path / UNET_WEIGHTS).write_bytes((path / UNET_WEIGHTS).read_bytes()[:-1] + b"\1")
    assert Bench(data, features, path).question("ddim", 2, 12).weights != before.weights


def test_classes_are_matched_by_their_names() -> None:
    indices = class_indices([0, 1, 1], ["light", "dark"], ["dark", "grey", "light"])
    assert indices is not None
    assert indices.tolist() == [2, 0, 0]
    assert class_indices([0], ["lighter"], ["dark", "light"]) is None
    assert class_indices([None], [], ["dark", "light"]) is None


def test_a_model_of_another_shape_than_the_features_is_refused(
    data: Path, features: Path, folder: Callable[..., Path], conditional: UNetConfig
) -> None:
    path = folder(dataclasses.replace(conditional, sample_size=16))
    with pytest.raises(EvaluationError, match=r"\(1, 16, 16\), the feature network takes \(1, 8, 8\)"):
        Bench(data, features, path)


def test_equal_sets_give_zero(data: Path, features: Path) -> None:
    done = invoke("evaluate", "--data", data, "--features", features, "--training", "--samples", 20, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    # 20 pictures leave most of 128 dimensions empty; the square root of rounding errors there is all that is left.
    assert abs(found["fid"]) < 1e-4
    assert (found["precision"], found["recall"], found["class_accuracy"]) == (1.0, 1.0, 1.0)
    assert found["samples"] == found["reference"] == 20
    assert "warning: 20 pictures are fewer than 2,048" in done.stderr
    assert "warning: 20 test images are fewer than 2,048" in done.stderr


def test_the_program_measures_a_model(data: Path, features: Path, folder: Callable[..., Path]) -> None:
    where = ("evaluate", "--data", data, "--features", features, "--model", folder())
    how = ("--samples", 9, "--steps", 2, "--guidance-scale", 2, "--seed", 5, "--batch", 4)
    command = (sys.executable, "-W", "error", "-m", "denoised.model", *map(str, (*where, *how)), "--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    asked = {"sampler": "ddim", "steps": 2, "guidance_scale": 2.0, "samples": 9, "seed": 5, "evaluations": 2}
    assert {key: found[key] for key in asked} == asked
    bench = Bench(data, features, folder(), batch=4)
    answer = bench.answer(bench.question("ddim", 2, 9, guidance_scale=2.0, seed=5))
    assert found["fid"] == pytest.approx(answer.fid, rel=1e-4)
    assert found["class_accuracy"] == answer.class_accuracy


def test_the_program_measures_a_folder_of_pictures_and_noise(
    data: Path, features: Path, dataset: Dataset, tmp_path: Path
) -> None:
    for k in range(20):
        sub = tmp_path / "pictures" / str(int(dataset.classes[k]))
        sub.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.images[k, 0].numpy()).save(sub / f"{k}.png")
    where = ("evaluate", "--data", data, "--features", features)
    same = json.loads(invoke(*where, "--pictures", tmp_path / "pictures", "--json").stdout)
    assert abs(same["fid"]) < 1e-4
    assert (same["samples"], same["class_accuracy"]) == (20, 1.0)
    noise = invoke(*where, "--noise", "--samples", 20)
    assert noise.exit_code == 0, noise.stderr
    assert "– (no labels)" in noise.stdout
    assert "20 test images of stripes" in noise.stdout


def test_the_program_trains_a_feature_network(data: Path, tmp_path: Path) -> None:
    done = invoke(
        "train-features", "--data", data, "--out", tmp_path / "mine", "--batch", 10, "--epochs", 20, "--shift", 0
    )
    assert done.exit_code == 0, done.stderr
    card = load_features(tmp_path / "mine").card
    assert f"{card.test_accuracy:.2%} of 20 test images right" in done.stdout
    assert (card.training["epochs"], card.training["flip"]) == (20, False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "name one of --model, --pictures, --training and --noise"),
        (("--noise", "--training"), "name one of --model, --pictures, --training and --noise"),
        (("--noise", "--precision", "half"), "precision = 'half' is not known (known: float32, bfloat16)"),
        (("--noise", "--features", "/nowhere"), "/nowhere/features.json: No such file or directory"),
        (("--training", "--samples", "21"), "samples = 21, but there are 20 training images"),
        (("--noise", "--samples", "3"), "3 pictures are too few: at least 4"),
    ],
)
def test_a_wrong_option_is_one_line(data: Path, features: Path, options: tuple[str, ...], expected: str) -> None:
    done = invoke("evaluate", "--data", data, "--features", features, *options)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"denoised evaluate: {expected}")
    assert done.stdout == ""


@pytest.fixture
def subject() -> Subject:
    card = FeatureCard(labels=["a", "b"], image_shape=(1, 8, 8), widths=[4], test_accuracy=0.9, test_images=50)
    default = Defaults(sampler="ddim", steps=20, guidance_scale=1.5)
    return Subject("boots", "aa", "bb", CardFile(default=default), card, samples=100)


def rows_of(subject: Subject, accuracy: float = 0.95, fid: float = 1.0) -> Rows:
    """Noise at FID 100, the model at `fid`, and a small sweep."""
    asked = dataclasses.replace(QUESTION, steps=20, seed=0)
    noise = Measurement(NOISE, "", "bb", "", 0, 0.0, 0.0, 10_000, 0, "")
    told = dataclasses.replace(ANSWER, evaluations=20, fid=fid, class_accuracy=accuracy)
    rows = {
        noise: dataclasses.replace(ANSWER, evaluations=0, fid=100.0, class_accuracy=None),
        dataclasses.replace(asked, samples=10_000): told,
        dataclasses.replace(asked, samples=2_000): told,
    }
    for k, sampler in enumerate(SAMPLERS):
        for budget in BUDGETS:
            question = Measurement(MODEL, "aa", "bb", sampler, budget, 0.0, 1.0, subject.samples, 0, "bfloat16")
            rows[question] = dataclasses.replace(ANSWER, evaluations=budget, fid=(k + 1) / budget)
    return rows


@pytest.mark.parametrize(
    ("accuracy", "fid", "expected"),
    [
        (0.95, 1.0, ("(20: reached)", "(95.00%: reached)", "(1.000%: reached)")),
        (0.92, 2.5, ("(20: reached)", "(92.00%: not reached)", "(2.500%: not reached)")),
    ],
)
def test_the_report_says_what_was_reached(
    subject: Subject, accuracy: float, fid: float, expected: tuple[str, ...]
) -> None:
    text = document(subject, rows_of(subject, accuracy, fid))
    for part in expected:
        assert part in text
    assert "| uniform noise | 10,000 | 100 | 100.000% |" in text
    assert "| training images | 1,000 | not measured yet |" in text


def test_the_report_says_when_nothing_is_measured(subject: Subject) -> None:
    assert "Whether the aims are reached is not measured yet." in document(subject, {})


def test_the_report_leaves_out_other_weights_and_other_features(subject: Subject) -> None:
    rows = rows_of(subject)
    stale = {
        dataclasses.replace(question, **change): dataclasses.replace(answer, fid=777.0)
        for question, answer in rows.items()
        if question.source == MODEL
        for change in ({"weights": "cc"}, {"features": "cc"})
    }
    assert document(subject, stale | rows) == document(subject, rows)


def test_every_sampler_stands_in_a_table_for_each_budget_best_first(subject: Subject) -> None:
    text = document(subject, rows_of(subject))
    for budget in BUDGETS:
        table = text.split(f"At most {budget} evaluations")[1].split("\n\n")[1]
        assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(SAMPLERS)


def test_the_report_comes_with_its_plot(subject: Subject, tmp_path: Path) -> None:
    write_report(tmp_path, subject, rows_of(subject))
    assert (tmp_path / "quality.md").read_text() == document(subject, rows_of(subject))
    with Image.open(tmp_path / "pictures" / "quality.png") as plot:
        pixels = np.asarray(plot.convert("RGB"))
    assert pixels.shape[0] > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "lines in colour"


def test_the_sweep_can_be_stopped_and_goes_on_to_the_same_report(
    data: Path, features: Path, folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after every third row; what stands in the table is never measured again."""
    for name, count in (("HEADLINE_SAMPLES", 12), ("HEADLINE_ACCURACY_SAMPLES", 8), ("FEW_TRAINING_IMAGES", 4)):
        monkeypatch.setattr(f"denoised.model.evaluation.quality.{name}", count)
    measured: list[Measurement] = []
    limits = [1]
    answer = Bench.answer

    def killed(bench: Bench, question: Measurement, advanced: Callable[[int], None]) -> Result:
        if len(measured) == limits[-1]:
            raise KeyboardInterrupt
        measured.append(question)
        return answer(bench, question, advanced)

    monkeypatch.setattr(Bench, "answer", killed)
    out = tmp_path / "docs"
    command = ("quality", "--data", data, "--features", features, "--model", folder(), "--out", out, "--samples", 9)
    while invoke(*command, "--samplers", "ddim").exit_code != 0:
        assert list(read_rows(out / "quality.csv")) == measured
        assert len(measured) == limits[-1]
        limits.append(limits[-1] + 3)
    assert limits == [1, 4, 7, 10]
    assert len(set(measured)) == len(measured) == 5 + len(BUDGETS)
    assert list(read_rows(out / "quality.csv")) == measured
    text = (out / "quality.md").read_text()
    (out / "quality.md").unlink()
    assert invoke(*command, "--no-measure").exit_code == 0
    assert (out / "quality.md").read_text() == text
    assert text.count("| `ddim` |") == len(BUDGETS)


def test_labels_in_each_others_way_are_moved_apart() -> None:
    assert apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert apart([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert apart([], 0.1) == []


def test_docs_quality_is_what_its_table_says(repository: Path) -> None:
    folder = ZOO / "fashion-mnist"
    subject = Subject(
        name="fashion-mnist",
        weights=digest(folder / UNET_WEIGHTS),
        features=digest(FASHION_FEATURES / WEIGHTS),
        model=read_card_file(folder),
        space=load_features(FASHION_FEATURES).card,
        samples=SWEEP_SAMPLES,
    )
    rows = read_rows(repository / "docs" / "quality.csv")
    assert rows, "measured rows"
    assert (repository / "docs" / "quality.md").read_text() == document(subject, rows)
