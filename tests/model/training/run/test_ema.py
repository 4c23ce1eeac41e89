"""`denoised ema`: the model of a run with another average of its weights."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from denoised.model.__main__ import app
from denoised.model.serving.loading import load_model
from denoised.model.training.datasets.dataset import Dataset
from denoised.model.training.power_averages import exponent
from denoised.model.training.run.run_checkpoints import load_newest_checkpoint, save_checkpoint
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.training_run import RunSchedule, run_training
from denoised.model.training.trainer import Trainer
from denoised.model.training.training_config import TrainingConfig

CONFIG = TrainingConfig(preset="tiny", images=192, batch=8, warmup=2, precision="float32", snapshots=8)
SCHEDULE = RunSchedule(log_every=999, checkpoint_every=96, sample_every=999)
WEIGHT = "conv_in.weight"


class RecordedTrainer(Trainer):
    """Keeps one weight of every step."""

    def train_step(self) -> tuple[float, float]:
        outcome = super().train_step()
        recorded.append(self.net.state_dict()[WEIGHT].clone())
        return outcome


recorded: list[torch.Tensor] = []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.create(CONFIG)
    classes = torch.arange(20) % 3
    images = torch.randint(0, 256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = Dataset(images=images, classes=classes, labels=("dark", "gray", "light"), source="noise")
    recorded.clear()
    assert run_training(RecordedTrainer(CONFIG, data), folder, SCHEDULE, Console(file=io.StringIO())) is None
    return folder.path


def ema(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ema", *map(str, arguments)])


def exact_average(width: float) -> torch.Tensor:
    """Of the recorded weight, in float64."""
    edges = torch.arange(len(recorded) + 1, dtype=torch.float64) / len(recorded)
    weights = (edges ** (exponent(width) + 1)).diff()
    return torch.einsum("n,n...->...", weights, torch.stack(recorded).double())


@pytest.mark.parametrize("width", [0.05, 0.08, 0.15])
def test_the_model_has_the_average_of_the_width(width: float, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = ema(run, "--width", width, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{out}: width {width:g} at step 24, combined from 16 averages; the profile is off by" in result.output
    found, expected = load_model(out).unet.state_dict()[WEIGHT], exact_average(width).float()
    rounding, moved = 2**-11 * expected.abs(), (recorded[-1] - recorded[0]).norm()
    assert (found - expected).norm() < rounding.norm() + 0.005 * moved


def test_the_card_names_the_width_and_the_step(run: Path, tmp_path: Path) -> None:
    assert ema(run, "--width", 0.1, "--out", tmp_path / "out").exit_code == 0
    card = json.loads((tmp_path / "out" / "model_card.json").read_text())
    assert card["labels"] == ["dark", "gray", "light"]
    assert {name: card["training"][name] for name in ("ema_width", "steps", "images_seen")} == {
        "ema_width": 0.1,
        "steps": 24,
        "images_seen": 192,
    }
    assert "ema_decay" not in card["training"]


def test_snapshots_are_stored_in_float16_at_even_steps(run: Path) -> None:
    paths = RunFolder(run).snapshots()
    assert [path.stem for path in paths] == [f"step-{step:08d}" for step in range(3, 25, 3)]
    assert {tensor.dtype for tensor in load_file(paths[0]).values()} == {torch.float16}


def test_a_resumed_run_has_the_same_averages_and_drops_later_snapshots(dataset: Dataset, tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path), dataclasses.replace(CONFIG, snapshots=4, images=64)
    folder.create(config)
    whole = Trainer(config, dataset)
    for _ in range(4):
        whole.train_step()
    save_checkpoint(whole, folder)
    folder.snapshot(6).parent.mkdir()
    folder.snapshot(6).write_bytes(b"of a run that went on and was lost")
    resumed = Trainer(config, dataset)
    load_newest_checkpoint(resumed, folder)
    assert not folder.snapshots()
    for trainer in (whole, resumed):
        trainer.train_step()
    assert whole.power_averages is not None
    assert resumed.power_averages is not None
    for name, value in whole.power_averages.tensors().items():
        assert torch.equal(resumed.power_averages.tensors()[name], value), name


def test_a_run_that_began_without_snapshots_goes_on_without(dataset: Dataset, tmp_path: Path) -> None:
    """Runs of earlier versions have neither the setting nor the averages."""
    folder, config = RunFolder(tmp_path), dataclasses.replace(CONFIG, snapshots=0)
    folder.create(config)
    save_checkpoint(Trainer(config, dataset), folder)
    stored = json.loads(folder.config_file.read_text())
    del stored["snapshots"]
    folder.config_file.write_text(json.dumps(stored))
    resumed = Trainer(folder.read_config(TrainingConfig), dataset)
    load_newest_checkpoint(resumed, folder)
    assert resumed.power_averages is None
    assert resumed.train_step()
    assert "power" not in " ".join(resumed.state())


def test_errors_name_the_cause(run: Path, tmp_path: Path) -> None:
    assert "ema: width = 0.5 is out of range (0.01 … 0.28)" in ema(run, "--width", 0.5, "--out", tmp_path / "a").output
    assert (
        "holds no snapshots: train with --snapshots 16" in ema(tmp_path, "--width", 0.1, "--out", tmp_path / "a").output
    )
    assert "is the model of the run" in ema(run, "--width", 0.1, "--out", run / "model").output
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    damaged = RunFolder(copy).snapshots()[2]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert f"{damaged} is damaged" in ema(copy, "--width", 0.1, "--out", tmp_path / "a").output
    damaged.unlink()
    assert ema(copy, "--width", 0.1, "--out", tmp_path / "a").exit_code == 0
    for path in RunFolder(copy).snapshots():
        save_file({name: t for name, t in load_file(path).items() if not name.endswith(WEIGHT)}, path)
    refused = ema(copy, "--width", 0.1, "--out", tmp_path / "b").output
    assert f"is of another network than the snapshots, which lack {WEIGHT}" in refused
    shutil.rmtree(copy / "model")
    assert "holds no model" in ema(copy, "--width", 0.1, "--out", tmp_path / "b").output
    assert not (tmp_path / "b").exists()
