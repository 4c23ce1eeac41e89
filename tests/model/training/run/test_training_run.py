"""A training run on disk, and `denoised train`."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from denoised.model.__main__ import app
from denoised.model.errors import TrainingError
from denoised.model.serving.loading import load_model
from denoised.model.training.datasets.dataset import Dataset
from denoised.model.training.datasets.sources import load_dataset
from denoised.model.training.run.metrics_log import METRICS_COLUMNS
from denoised.model.training.run.run_checkpoints import load_newest_checkpoint, save_checkpoint
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.training_run import RunSchedule, run_training
from denoised.model.training.trainer import Trainer
from denoised.model.training.training_config import TrainingConfig
from tests import fork_server

CONFIG = TrainingConfig(preset="tiny", images=160, batch=8, warmup=2, precision="float32")
SCHEDULE = RunSchedule(log_every=40, checkpoint_every=40, sample_every=80)
COMMAND = (sys.executable, "-m", "denoised.model", "train")
# As the tests of this folder: on a busy machine two threads wait for each other.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TINY = (
    "--preset",
    "tiny",
    "--batch",
    "8",
    "--size",
    "8",
    "--precision",
    "float32",
    "--warmup",
    "2",
    "--learning-rate",
    "1e-3",
)


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of eight small images of two classes, in color."""
    folder = tmp_path / "pictures"
    for k in range(8):
        sub = folder / ("dark" if k % 2 else "light")
        sub.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40, 20, 10) if k % 2 else (200, 220, 240)).save(sub / f"{k}.png")
    return folder


def train(*arguments: str) -> Result:
    """Run `denoised train` in this process: a process of its own imports torch for seconds."""
    return CliRunner().invoke(app, ["train", *arguments])


def test_a_run_folder_holds_checkpoints_metrics_grids_and_a_model(dataset: Dataset, tmp_path: Path) -> None:
    RunFolder(tmp_path).create(CONFIG)
    assert run_training(Trainer(CONFIG, dataset), RunFolder(tmp_path), SCHEDULE, quiet()) is None
    assert RunFolder(tmp_path).read_config(TrainingConfig) == CONFIG
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == [
        "step-00000015.safetensors",
        "step-00000020.safetensors",
    ]
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["images"]) for row in rows] == [40, 80, 120, 160]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["00000080.png", "00000160.png"]
    with Image.open(tmp_path / "samples" / "00000160.png") as grid:
        assert grid.size == (3 * 9 - 1, 4 * 9 - 1)
    with Image.open(tmp_path / "loss.png") as plot:
        assert plot.size == (960, 540)
    model = load_model(tmp_path / "model")
    assert model.card.labels == ["dark", "gray", "light"]
    assert model.card.unconditional, "labels were dropped in training"


def test_logging_saving_and_sampling_change_no_number_of_a_run(dataset: Dataset, tmp_path: Path) -> None:
    """Grids and checkpoints at every step or never; dropout draws from the generator that they could disturb."""
    config = dataclasses.replace(CONFIG, images=24, dropout=0.2)
    ends = []
    for name, schedule in (("busy", RunSchedule(8, 8, 8)), ("idle", RunSchedule(999, 999, 999))):
        trainer = Trainer(config, dataset)
        RunFolder(tmp_path / name).create(config)
        assert run_training(trainer, RunFolder(tmp_path / name), schedule, quiet()) is None
        ends.append(trainer.state())
    busy, idle = ends
    for key, value in idle.items():
        assert torch.equal(busy[key], value), key


def test_a_run_resumed_from_disk_equals_an_uninterrupted_one(dataset: Dataset, tmp_path: Path) -> None:
    RunFolder(tmp_path).create(CONFIG)
    first = Trainer(CONFIG, dataset)
    for _ in range(5):
        first.train_step()
    save_checkpoint(first, RunFolder(tmp_path))
    second = Trainer(CONFIG, dataset)
    load_newest_checkpoint(second, RunFolder(tmp_path))
    assert second.step == 5
    for _ in range(5):
        assert first.train_step() == second.train_step()
    found = second.state()
    for name, value in first.state().items():
        assert torch.equal(value, found[name]), name


def test_a_truncated_checkpoint_is_skipped_for_the_one_before(dataset: Dataset, tmp_path: Path) -> None:
    RunFolder(tmp_path).create(CONFIG)
    trainer = Trainer(CONFIG, dataset)
    for _ in range(2):
        trainer.train_step()
        save_checkpoint(trainer, RunFolder(tmp_path))
    newest = RunFolder(tmp_path).checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = Trainer(CONFIG, dataset)
    load_newest_checkpoint(resumed, RunFolder(tmp_path))
    assert resumed.step == 1


def test_a_resumed_run_removes_what_a_killed_one_left_incomplete(dataset: Dataset, tmp_path: Path) -> None:
    """Partial files, a partial line of metrics, and the metrics of steps that will be repeated."""
    RunFolder(tmp_path).create(CONFIG)
    trainer = Trainer(CONFIG, dataset)
    for _ in range(10):
        trainer.train_step()
    save_checkpoint(trainer, RunFolder(tmp_path))
    lines = [
        ",".join(METRICS_COLUMNS),
        "5,40,0.5,1.0,1e-3,9.0",
        "10,80,0.4,1.0,1e-3,9.0",
        "15,120,0.3,1.0,1e-3,9.0",
        "2",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    half = [
        tmp_path / "checkpoints" / ".step-00000015.safetensors.77.tmp",
        tmp_path / "model" / ".model_card.json.7.tmp",
    ]
    for path in half:
        path.write_bytes(b"half")
    resumed = Trainer(CONFIG, dataset)
    load_newest_checkpoint(resumed, RunFolder(tmp_path))
    assert not any(path.exists() for path in half)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == lines[:3]
    assert run_training(resumed, RunFolder(tmp_path), SCHEDULE, quiet()) is None
    with (tmp_path / "metrics.csv").open() as file:
        assert [int(row["images"]) for row in csv.DictReader(file)] == [40, 80, 120, 160]


def test_metrics_without_a_complete_kept_line_are_removed(dataset: Dataset, tmp_path: Path) -> None:
    RunFolder(tmp_path).create(CONFIG)
    save_checkpoint(Trainer(CONFIG, dataset), RunFolder(tmp_path))
    for content in ("", "step,ima", f"{','.join(METRICS_COLUMNS)}\n5,40,0.5,1.0,1e-3,9.0\n"):
        (tmp_path / "metrics.csv").write_text(content)
        load_newest_checkpoint(Trainer(CONFIG, dataset), RunFolder(tmp_path))
        assert not (tmp_path / "metrics.csv").exists()


def test_even_a_short_run_ends_with_a_line_of_metrics_a_plot_and_a_grid(dataset: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, images=24)
    RunFolder(tmp_path).create(config)
    assert run_training(Trainer(config, dataset), RunFolder(tmp_path), RunSchedule(), quiet()) is None
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["step"], row["images"]) == ("3", "24")
    assert (tmp_path / "loss.png").exists()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["00000024.png"]


def test_a_new_run_in_a_folder_with_a_run_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    RunFolder(tmp_path).create(CONFIG)
    save_checkpoint(Trainer(CONFIG, dataset), RunFolder(tmp_path))
    with pytest.raises(TrainingError, match="already holds a run"):
        RunFolder(tmp_path).create(CONFIG)


def test_only_length_and_learning_rate_may_change_on_resume(tmp_path: Path) -> None:
    RunFolder(tmp_path).create(CONFIG)
    assert RunFolder(tmp_path).config_to_resume({"images": 99, "batch": CONFIG.batch}, TrainingConfig).images == 99
    assert RunFolder(tmp_path).config_to_resume({"learning_rate": 1e-5}, TrainingConfig).learning_rate == 1e-5
    for name, value in (("batch", CONFIG.batch + 1), ("seed", 99), ("preset", "large")):
        with pytest.raises(TrainingError, match=f"{name} = {value} differs from the run's {getattr(CONFIG, name)}"):
            RunFolder(tmp_path).config_to_resume({name: value}, TrainingConfig)


def test_resuming_without_a_run_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no run to resume"):
        RunFolder(tmp_path).read_config(TrainingConfig)
    with pytest.raises(TrainingError, match="no complete checkpoint"):
        load_newest_checkpoint(Trainer(CONFIG, dataset), RunFolder(tmp_path))


def test_the_command_trains_a_model_that_can_be_served(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("--data", str(pictures), "--out", str(out), "--images", "64", "--sample-every", "32", *TINY)
    command = [*COMMAND, *arguments]
    done = fork_server.run(command, capture_output=True, text=True, timeout=300, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()[-3:]]
    assert lines[-1] == "denoised serve --model models/my-run"
    subprocess.run(["bash", "-ec", "\n".join(lines[:-1])], cwd=tmp_path, check=True)
    model = load_model(tmp_path / "models/my-run")
    assert model.card.name == "my-run", "not named `model`"
    assert model.card.labels == ["dark", "light"]
    assert model.shape == (3, 8, 8)
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["00000032.png", "00000064.png"]
    with Image.open(out / "samples" / "00000064.png") as grid:
        assert grid.mode == "RGB"


def test_broken_images_are_listed_before_the_first_step_and_refused_or_skipped(pictures: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "run", ("dark/empty.png", "light/text.png")
    (pictures / names[0]).write_bytes(b"")
    (pictures / names[1]).write_text("no picture")
    common = ("--data", str(pictures), "--out", str(out), "--images", "16", *TINY)
    refused = train(*common)
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("denoised train: 2 of 10 files cannot be read: ")
    assert all(str(pictures / name) in refused.stderr for name in names)
    assert refused.stderr.endswith(": repair or remove them, or pass --unreadable skip\n")
    assert not out.exists()
    done = train(*common, "--unreadable", "skip")
    assert done.exit_code == 0, done.stderr
    assert [line.split(" (")[0] for line in done.stderr.splitlines()] == [f"skipped {pictures / n}" for n in names]
    assert done.stdout.startswith("8 images of 2 classes")
    assert RunFolder(out).read_config(TrainingConfig).unreadable == "skip"


def test_a_run_without_matplotlib_says_so_once_and_continues(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for name in ("matplotlib", *(name for name in sys.modules if name.startswith("matplotlib."))):
        monkeypatch.setitem(sys.modules, name, None)
    done = train("--data", str(pictures), "--out", str(out), "--images", "32", "--sample-every", "16", *TINY)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("No loss.png: matplotlib is not installed; it comes with denoised's extra 'train'.") == 1
    assert not (out / "loss.png").exists()
    assert load_model(out / "model").card.labels == ["dark", "light"]


def test_a_missing_dataset_is_reported_in_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = train("--data", str(tmp_path / "none"), "--out", str(tmp_path / "run"))
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "none") in done.stderr
    assert "apt install dataset-fashion-mnist" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--size", "50", "size = 50 does not fit preset 'small': it must be a multiple of 4"),
        ("--size", "0", "size = 0 is out of range (1 … 2048)"),
        ("--size", "1000000", "size = 1000000 is out of range (1 … 2048)"),
        ("--out", "{pictures}/dark/00.png", "cannot be written (Not a directory): name another folder with --out"),
        ("--out", "/proc/run", "/proc/run cannot be written"),
    ],
)
def test_size_and_folder_are_checked_before_the_data(pictures: Path, option: str, value: str, expected: str) -> None:
    first = next(pictures.rglob("*.png"))
    given = {"--data": str(pictures / "none"), "--out": str(pictures / "run")}
    given |= {option: value.replace("{pictures}/dark/00.png", f"{first}/run")}
    done = train(*(text for item in given.items() for text in item))
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--preset", "huge", "preset = 'huge' is not known (known: tiny, small"),
        ("--prediction", "noise", "prediction_type = 'noise' is not known"),
        ("--label-dropout", "1.5", "label_dropout = 1.5 is out of range (0 … 1)"),
        ("--background", "nacre", "background = 'nacre' is not a color (use a CSS color name or #rrggbb)"),
    ],
)
def test_an_invalid_option_is_reported_in_one_line(
    pictures: Path, tmp_path: Path, option: str, value: str, expected: str
) -> None:
    done = train("--data", str(pictures), "--out", str(tmp_path / "run"), "--size", "8", option, value)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_stopped_run_exits_with_the_signals_code_and_resumes_to_the_same_weights(
    signum: signal.Signals, code: int, pictures: Path, tmp_path: Path
) -> None:
    """After a signal and --resume, weights, average and moments equal those of an uninterrupted run.

    At a constant learning rate the numbers of a step do not depend on the run's length, so the signal may come at
    any step.
    """
    out = tmp_path / "run"
    common = ("--data", str(pictures), "--out", str(out), *TINY, "--lr-schedule", "constant")
    endless = [*COMMAND, *common, "--images", "100000000", "--checkpoint-every", "80"]
    process = fork_server.Popen(endless, stdout=subprocess.DEVNULL, env=ONE_THREAD)
    try:
        while len(RunFolder(out).checkpoints()) < 2 and process.poll() is None:  # the first is of step 0
            time.sleep(0.02)
        process.send_signal(signum)
        assert process.wait(180) == code
    finally:
        process.kill()
    steps = int(RunFolder(out).checkpoints()[-1].stem.removeprefix("step-")) + 3
    done = train(*common, "--resume", "--images", str(8 * steps))
    assert done.exit_code == 0, done.stderr
    whole = Trainer(dataclasses.replace(CONFIG, lr_schedule="constant"), load_dataset(pictures, 8))
    for _ in range(steps):
        whole.train_step()
    found = load_file(RunFolder(out).checkpoints()[-1])
    assert int(found["step"]) == steps
    assert found.keys() == whole.state().keys()
    for name, value in whole.state().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)
