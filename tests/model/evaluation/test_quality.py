"""The table of measurements, the sweep, and the report generated from it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denoised.model.checkpoints.card_file import CardFile, Defaults, read_card_file, write_card_file
from denoised.model.diffusion.level_choice import MODELS_OWN, LevelChoice
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.evaluator import Evaluator, class_indices, digest
from denoised.model.evaluation.features import FASHION_FEATURES, WEIGHTS, FeatureCard, load_features
from denoised.model.evaluation.quality_consistency import tuned_weights
from denoised.model.evaluation.quality_headline import ReportSubject
from denoised.model.evaluation.quality_plot import spread_out
from denoised.model.evaluation.quality_report import render_quality_page, write_report
from denoised.model.evaluation.quality_sweep import (
    BUDGETS,
    SWEEP_SAMPLES,
    headline_measurements,
    measure_once,
    steps_within,
    sweep_measurements,
)
from denoised.model.evaluation.quality_table import (
    MODEL,
    NOISE,
    TRAINING,
    Measurement,
    Result,
    Results,
    read_results,
    write_results,
)
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.serving.sampling import count_evaluations
from denoised.model.training.datasets.dataset import Dataset
from tests.model_commands import run_command

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

TRAILING = LevelChoice("trailing")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
MEASUREMENT = Measurement(MODEL, "aa", "bb", "ddim", 5, 0.0, 1.5, 100, 7, "float32")
RESULT = Result(5, 1.25, 0.5, 0.125, 0.75, 0.25, 0.5, 3.0)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "quality.csv"
    levels = {"spacing": "geometric", "sigma_min": 0.1, "sigmas": (40.0, 3.25), "guidance_interval": (0.2, 2.0)}
    rows: Results = {
        MEASUREMENT: RESULT,
        dataclasses.replace(MEASUREMENT, **levels): dataclasses.replace(
            RESULT, class_precision=(0.5, 0.25), class_recall=(1.0, 0.0)
        ),
        dataclasses.replace(MEASUREMENT, seed=8): dataclasses.replace(RESULT, class_accuracy=None),
    }
    assert read_results(path) == {}
    write_results(path, rows)
    assert read_results(path) == rows
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("corrupt", "expected"),
    [
        (lambda text: text.replace("sampler,", "solver,"), "columns are not source, weights, features, sampler"),
        (lambda text: text.replace("1.25", "low"), "line 2: could not convert string to float: 'low'"),
        (lambda text: text[: text.index("0.125")] + "\n", "line 2: "),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, corrupt: Callable[[str], str], expected: str) -> None:
    path = tmp_path / "quality.csv"
    write_results(path, {MEASUREMENT: RESULT})
    path.write_text(corrupt(path.read_text()))
    with pytest.raises(EvaluationError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_steps_are_the_most_that_the_budget_of_evaluations_allows(folder: Callable[..., Path]) -> None:
    model = load_model(folder())
    assert [steps_within(model, "ddim", budget, TRAILING) for budget in BUDGETS] == list(BUDGETS)
    assert [steps_within(model, "heun", budget, TRAILING) for budget in BUDGETS] == [2, 3, 3, 4, 5, 10]  # 2N − 1
    assert [steps_within(model, "ddim", budget, TRAILING, 2.0) for budget in BUDGETS] == [2, 2, 3, 4, 5, 10]
    for sampler in model.card.samplers:
        for budget in BUDGETS:
            steps = steps_within(model, sampler, budget, MODELS_OWN)
            assert steps is None or model.plan(sampler, steps, 0.0).evaluations <= budget


def test_a_guidance_interval_leaves_more_steps_within_the_budget(folder: Callable[..., Path]) -> None:
    """Six levels from 40 to .1 by a factor of 3.3: two of them lie in (.2, 2]."""
    model, levels = load_model(folder()), LevelChoice("geometric", sigma_min=0.1, sigma_max=40.0)
    plan = model.plan("unipc_3", 6, 0.0, levels)
    assert count_evaluations(plan) == 6
    assert count_evaluations(plan, 2.0) == 12
    assert count_evaluations(plan, 2.0, (0.2, 2.0)) == 8
    assert steps_within(model, "unipc_3", 8, levels, 2.0, (0.2, 2.0)) == 6


def test_the_sweep_measures_every_sampler_at_every_budget(
    data: Path, features: Path, folder: Callable[..., Path]
) -> None:
    evaluator = Evaluator(data, features, folder())
    assert evaluator.model is not None
    asked = sweep_measurements(evaluator, evaluator.model, evaluator.model.card.samplers, samples=12)
    assert {q.sampler for q in asked} == set(evaluator.model.card.samplers)
    assert {(q.source, q.guidance_scale, q.eta, q.samples) for q in asked} == {(MODEL, 1.0, 0.0, 12)}
    assert {q.spacing for q in asked if q.sampler == "ddim"} == {"geometric", "trailing"}
    assert {q.spacing for q in asked if q.sampler == "lcm"} == {""}, "it has levels of its own"
    assert len(set(asked)) == len(asked)
    at_the_top = headline_measurements(evaluator, "float32")
    assert [(q.source, q.samples) for q in at_the_top] == [
        (NOISE, 10_000),
        (TRAINING, 10_000),
        (TRAINING, 2_000),
        (MODEL, 2_000),
        (MODEL, 10_000),
        (MODEL, 2_000),
        (MODEL, 10_000),
    ]


def test_the_sweep_takes_the_guidance_of_the_card_too(data: Path, features: Path, folder: Callable[..., Path]) -> None:
    path = folder()
    default = Defaults(guidance_scale=2.0, guidance_interval=(0.2, 2.0))
    write_card_file(path, read_card_file(path).model_copy(update={"default": default}))
    evaluator = Evaluator(data, features, path)
    assert evaluator.model is not None
    asked = sweep_measurements(evaluator, evaluator.model, ["ddim"], samples=12)
    assert {(q.guidance_scale, q.guidance_interval) for q in asked} == {(1.0, ()), (2.0, (0.2, 2.0))}
    guided = [q for q in asked if q.guidance_interval and q.spacing == "geometric"]
    plans = [evaluator.model.plan("ddim", q.steps, 0.0, q.levels) for q in guided]
    counts = [count_evaluations(plan, 2.0, q.interval) for plan, q in zip(plans, guided, strict=True)]
    assert len(counts) >= 4
    assert max(counts) <= max(BUDGETS)
    assert all(plan.evaluations < count for plan, count in zip(plans, counts, strict=True))


def test_the_defaults_of_a_card_are_measured_as_a_request_gets_them(
    data: Path, features: Path, folder: Callable[..., Path]
) -> None:
    path = folder()
    default = Defaults(
        sampler="unipc_3", steps=3, guidance_scale=2.0, guidance_interval=(0.2, 2.0), spacing="geometric", sigma_max=9.0
    )
    write_card_file(path, read_card_file(path).model_copy(update={"default": default}))
    evaluator = Evaluator(data, features, path)
    asked = evaluator.default_measurement(12)
    assert (asked.sampler, asked.steps, asked.spacing, asked.sigma_max) == ("unipc_3", 3, "geometric", 9.0)
    assert asked.levels == LevelChoice("geometric", sigma_max=9.0)
    assert asked.interval == (0.2, 2.0)
    result = evaluator.measure(asked)
    assert result.evaluations == 4  # 9, .95 and .1, and the level in (.2, 2] once more
    assert len(result.class_precision) == len(result.class_recall) == 3


def test_nothing_is_measured_twice(data: Path, features: Path, folder: Callable[..., Path], tmp_path: Path) -> None:
    evaluator = Evaluator(data, features, folder(), batch=8)
    path = tmp_path / "quality.csv"
    measurement = evaluator.model_measurement("euler_a", 3, 12, guidance_scale=2.0)
    reported: list[int] = []
    first = measure_once(evaluator, path, measurement, reported.append)
    assert reported == [8, 4]
    assert first.evaluations == 6
    assert first.class_accuracy is not None
    again = measure_once(evaluator, path, measurement, reported.append)
    assert reported == [8, 4], "nothing was generated"
    assert again == read_results(path)[measurement]
    other = measure_once(evaluator, path, dataclasses.replace(measurement, seed=1), reported.append)
    assert other.fid != first.fid
    assert list(read_results(path)) == [measurement, dataclasses.replace(measurement, seed=1)]


def test_a_measurement_is_reproducible(data: Path, features: Path, folder: Callable[..., Path]) -> None:
    first, second = (Evaluator(data, features, folder()) for _ in range(2))
    measurement = first.model_measurement("ddim", 2, 12)
    results = [dataclasses.replace(evaluator.measure(measurement), seconds=0.0) for evaluator in (first, second)]
    assert results[0] == results[1]


def test_other_weights_are_another_measurement(data: Path, features: Path, folder: Callable[..., Path]) -> None:
    path = folder()
    before = Evaluator(data, features, path).model_measurement("ddim", 2, 12)
    assert before.weights == digest(path / UNET_WEIGHTS)
    assert before.features == digest(features / WEIGHTS)
    (path / UNET_WEIGHTS).write_bytes((path / UNET_WEIGHTS).read_bytes()[:-1] + b"\1")
    assert Evaluator(data, features, path).model_measurement("ddim", 2, 12).weights != before.weights


def test_classes_are_matched_by_name() -> None:
    indices = class_indices([0, 1, 1], ["light", "dark"], ["dark", "gray", "light"])
    assert indices is not None
    assert indices.tolist() == [2, 0, 0]
    assert class_indices([0], ["lighter"], ["dark", "light"]) is None
    assert class_indices([None], [], ["dark", "light"]) is None


def test_a_model_of_another_shape_than_the_features_is_refused(
    data: Path, features: Path, folder: Callable[..., Path], conditional: UNetConfig
) -> None:
    path = folder(dataclasses.replace(conditional, sample_size=16))
    with pytest.raises(EvaluationError, match=r"\(1, 16, 16\), the feature network takes \(1, 8, 8\)"):
        Evaluator(data, features, path)


def test_equal_sets_give_zero(data: Path, features: Path) -> None:
    done = run_command("evaluate", "--data", data, "--features", features, "--training", "--samples", 20, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    # 20 pictures leave most of 128 dimensions empty; the square root of rounding errors there is all that is left.
    assert abs(found["fid"]) < 1e-4
    assert (found["precision"], found["recall"], found["class_accuracy"]) == (1.0, 1.0, 1.0)
    assert found["samples"] == found["reference"] == 20
    assert "warning: 20 images are fewer than 2,048" in done.stderr
    assert "warning: 20 test images are fewer than 2,048" in done.stderr


def test_the_command_measures_a_model(data: Path, features: Path, folder: Callable[..., Path]) -> None:
    where = ("evaluate", "--data", data, "--features", features, "--model", folder())
    how = ("--samples", 9, "--steps", 2, "--guidance-scale", 2, "--seed", 5, "--batch", 4)
    command = (sys.executable, "-W", "error", "-m", "denoised.model", *map(str, (*where, *how)), "--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    asked = {"sampler": "ddim", "steps": 2, "guidance_scale": 2.0, "samples": 9, "seed": 5, "evaluations": 4}
    assert {key: found[key] for key in asked} == asked
    evaluator = Evaluator(data, features, folder(), batch=4)
    result = evaluator.measure(evaluator.model_measurement("ddim", 2, 9, guidance_scale=2.0, seed=5))
    assert found["fid"] == pytest.approx(result.fid, rel=1e-4)
    assert found["class_accuracy"] == result.class_accuracy


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"sampler": "unipc_3", "steps": 3, "spacing": "geometric", "guidance_interval": [0.2, 2.0]}),
        (("--steps", 4), {"sampler": "unipc_3", "steps": 4, "spacing": "geometric", "sigma_max": 9.0}),
        (("--sampler", "ddim"), {"sampler": "ddim", "spacing": "", "sigma_max": None, "guidance_scale": 2.0}),
        (("--guidance-scale", 3), {"guidance_scale": 3.0, "guidance_interval": [], "spacing": "geometric"}),
        (("--guidance-interval", "0.5,3"), {"guidance_scale": 2.0, "guidance_interval": [0.5, 3.0]}),
        (("--spacing", "karras", "--sigma-max", 5), {"spacing": "karras", "sigma_max": 5.0, "sampler": "unipc_3"}),
        (("--sigmas", "9,1"), {"sigmas": [9.0, 1.0], "steps": 2, "spacing": ""}),
    ],
)
def test_the_command_takes_the_levels_of_the_card_or_those_that_are_named(
    data: Path, features: Path, folder: Callable[..., Path], options: tuple[object, ...], expected: dict[str, object]
) -> None:
    path = folder()
    default = Defaults(
        sampler="unipc_3", steps=3, guidance_scale=2.0, guidance_interval=(0.2, 2.0), spacing="geometric", sigma_max=9.0
    )
    write_card_file(path, read_card_file(path).model_copy(update={"default": default}))
    where = ("evaluate", "--data", data, "--features", features, "--model", path, "--samples", 6, "--json")
    found = json.loads(run_command(*where, *options).stdout)
    assert {name: found[name] for name in expected} == expected


def test_the_command_measures_a_folder_of_pictures_and_noise(
    data: Path, features: Path, dataset: Dataset, tmp_path: Path
) -> None:
    for k in range(20):
        sub = tmp_path / "pictures" / str(int(dataset.classes[k]))
        sub.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.images[k, 0].numpy()).save(sub / f"{k}.png")
    where = ("evaluate", "--data", data, "--features", features)
    same = json.loads(run_command(*where, "--pictures", tmp_path / "pictures", "--json").stdout)
    assert abs(same["fid"]) < 1e-4
    assert (same["samples"], same["class_accuracy"]) == (20, 1.0)
    noise = run_command(*where, "--noise", "--samples", 20)
    assert noise.exit_code == 0, noise.stderr
    assert "– (no labels)" in noise.stdout
    assert "20 test images of stripes" in noise.stdout


def test_the_command_trains_a_feature_network(data: Path, tmp_path: Path) -> None:
    done = run_command(
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
        (
            ("--noise", "--features", "/nowhere"),
            "/nowhere/features.json: missing: name a folder written by denoised train-features",
        ),
        (("--training", "--samples", "21"), "samples = 21, but there are 20 training images"),
        (("--noise", "--samples", "3"), "3 images are too few: at least 4"),
        (
            ("--model", str(ZOO / "digits"), "--guidance-interval", "1"),
            "guidance_interval = '1' is not 2 numbers separated by commas",
        ),
        (("--model", str(ZOO / "digits"), "--sigmas", "9,x"), "sigmas = '9,x' is not a list of numbers separated by"),
    ],
)
def test_an_invalid_option_is_reported_in_one_line(
    data: Path, features: Path, options: tuple[str, ...], expected: str
) -> None:
    done = run_command("evaluate", "--data", data, "--features", features, *options)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"denoised evaluate: {expected}")
    assert done.stdout == ""


@pytest.fixture
def subject() -> ReportSubject:
    card = FeatureCard(labels=["a", "b"], image_shape=(1, 8, 8), widths=[4], test_accuracy=0.9, test_images=50)
    default = Defaults(sampler="ddim", steps=4, guidance_scale=1.5, guidance_interval=(0.2, 2.0))
    return ReportSubject("boots", "aa", "bb", CardFile(default=default), card, samples=100)


def rows_of(subject: ReportSubject, accuracy: float = 0.95, fid: float = 0.07) -> Results:
    """Noise at FID 100, the model at `fid`, and a small sweep."""
    asked = dataclasses.replace(MEASUREMENT, steps=4, seed=0, guidance_interval=(0.2, 2.0))
    noise = Measurement(NOISE, "", "bb", "", 0, 0.0, 0.0, 10_000, 0, "")
    scores = dataclasses.replace(RESULT, evaluations=6, fid=fid, class_accuracy=accuracy)
    rows = {
        noise: dataclasses.replace(RESULT, evaluations=0, fid=100.0, class_accuracy=None),
        dataclasses.replace(asked, samples=10_000): scores,
        dataclasses.replace(asked, samples=2_000): scores,
    }
    for k, sampler in enumerate(SAMPLERS):
        for budget in BUDGETS:
            measurement = Measurement(MODEL, "aa", "bb", sampler, budget, 0.0, 1.0, subject.samples, 0, "float32")
            rows[measurement] = dataclasses.replace(RESULT, evaluations=budget, fid=(k + 1) / budget)
    return rows


@pytest.mark.parametrize(
    ("accuracy", "fid", "expected"),
    [
        (0.95, 0.07, ("of at least 96% (not met)", "of at least 94% (met)", "(0.070%: met)")),
        (0.965, 0.09, ("of at least 96% (met)", "of at least 94% (not met)", "(0.090%: met)")),
        (0.92, 2.5, ("of at least 96% (not met)", "of at least 94% (not met)", "(2.500%: not met)")),
    ],
)
def test_the_report_says_which_targets_are_met(
    subject: ReportSubject, accuracy: float, fid: float, expected: tuple[str, ...]
) -> None:
    text = render_quality_page(subject, rows_of(subject, accuracy, fid))
    for part in expected:
        assert part in text
    assert "| uniform noise | 10,000 | – | 100 | 100.000% |" in text
    assert "| training images | 2,000 | not measured yet |" in text
    assert "| the card's defaults: ddim, 4 steps, guidance 1.5 in 0.2 … 2 | 2,000 | 6 |" in text
    assert "| the defaults before: dpmpp_2m, 20 steps trailing, guidance 1.5 | 2,000 | not measured yet |" in text


def test_classes_stand_beside_those_of_training_images(subject: ReportSubject) -> None:
    rows = rows_of(subject)
    assert "Each class by itself" not in render_quality_page(subject, rows)
    real = Measurement(TRAINING, "", "bb", "", 0, 0.0, 0.0, 2_000, 0, "")
    rows[real] = dataclasses.replace(RESULT, class_precision=(0.9, 0.8), class_recall=(0.7, 0.6))
    asked = dataclasses.replace(subject.default, samples=2_000, arithmetic="float32")
    rows[asked] = dataclasses.replace(rows[asked], class_precision=(0.5, 0.4), class_recall=(0.3, 0.2))
    text = render_quality_page(subject, rows)
    assert "| a | 0.900 | 0.500 | 0.700 | 0.300 |\n| b | 0.800 | 0.400 | 0.600 | 0.200 |\n" in text


def test_the_report_says_when_nothing_is_measured(subject: ReportSubject) -> None:
    assert "Whether the targets are met is not measured yet." in render_quality_page(subject, {})


def test_the_report_omits_other_weights_and_other_features(subject: ReportSubject) -> None:
    rows = rows_of(subject)
    stale = {
        dataclasses.replace(measurement, **change): dataclasses.replace(result, fid=777.0)
        for measurement, result in rows.items()
        if measurement.source == MODEL
        for change in ({"weights": "cc"}, {"features": "cc"})
    }
    assert render_quality_page(subject, stale | rows) == render_quality_page(subject, rows)


def test_each_budget_has_a_table_of_every_sampler_best_first(subject: ReportSubject) -> None:
    text = render_quality_page(subject, rows_of(subject))
    for budget in BUDGETS:
        table = text.split(f"At most {budget} evaluations")[1].split("\n\n")[1]
        assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(SAMPLERS)


def test_the_report_includes_its_plot(subject: ReportSubject, tmp_path: Path) -> None:
    write_report(tmp_path, subject, rows_of(subject))
    assert (tmp_path / "quality.md").read_text() == render_quality_page(subject, rows_of(subject))
    with Image.open(tmp_path / "pictures" / "quality.png") as plot:
        pixels = np.asarray(plot.convert("RGB"))
    assert pixels.shape[0] > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "lines in color"


def test_an_interrupted_sweep_continues_to_the_same_report(
    data: Path, features: Path, folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after every sixth row; what is in the table is never measured again."""
    for name, count in (("HEADLINE_SAMPLES", 12), ("HEADLINE_ACCURACY_SAMPLES", 8)):
        monkeypatch.setattr(f"denoised.model.evaluation.quality_sweep.{name}", count)
    measured: list[Measurement] = []
    limits = [1]
    measure = Evaluator.measure

    def interrupted(evaluator: Evaluator, measurement: Measurement, advanced: Callable[[int], None]) -> Result:
        if len(measured) == limits[-1]:
            raise KeyboardInterrupt
        measured.append(measurement)
        return measure(evaluator, measurement, advanced)

    monkeypatch.setattr(Evaluator, "measure", interrupted)
    out = tmp_path / "docs"
    command = ("quality", "--data", data, "--features", features, "--model", folder(), "--out", out, "--samples", 9)
    while run_command(*command, "--samplers", "ddim").exit_code != 0:
        assert list(read_results(out / "quality.csv")) == measured
        assert len(measured) == limits[-1]
        limits.append(limits[-1] + 6)
    assert limits == [1, 7, 13, 19]
    assert len(set(measured)) == len(measured) == 7 + 2 * len(BUDGETS)
    assert list(read_results(out / "quality.csv")) == measured
    text = (out / "quality.md").read_text()
    (out / "quality.md").unlink()
    assert run_command(*command, "--no-measure").exit_code == 0
    assert (out / "quality.md").read_text() == text
    assert text.count("| `ddim` |") == 2 * len(BUDGETS)


def test_overlapping_labels_are_moved_apart() -> None:
    assert spread_out([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread_out([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread_out([], 0.1) == []


def test_docs_quality_is_generated_from_its_table(repository: Path) -> None:
    folder = ZOO / "fashion-mnist"
    subject = ReportSubject(
        name="fashion-mnist",
        weights=digest(folder / UNET_WEIGHTS),
        features=digest(FASHION_FEATURES / WEIGHTS),
        model=read_card_file(folder),
        space=load_features(FASHION_FEATURES).card,
        samples=SWEEP_SAMPLES,
        tuned_weights=tuned_weights(folder),
    )
    rows = read_results(repository / "docs" / "quality.csv")
    assert rows, "measured rows"
    assert (repository / "docs" / "quality.md").read_text() == render_quality_page(subject, rows)
