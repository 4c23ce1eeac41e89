"""After any number of SIGKILLs the newest checkpoint loads, and the run ends as an uninterrupted one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from denoised.model.serving.loading import load_model
from denoised.model.training.datasets.sources import load_dataset
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.trainer import Trainer
from denoised.model.training.training_config import TrainingConfig

CONFIG = TrainingConfig(
    preset="tiny", images=8 * 1500, batch=8, warmup=20, flip=True, min_snr_gamma=5.0, precision="float32"
)
OPTIONS = (
    *("--data", "digits", "--preset", "tiny", "--images", str(CONFIG.images), "--batch", "8", "--warmup", "20"),
    *("--learning-rate", str(CONFIG.learning_rate), "--flip", "--min-snr-gamma", "5", "--precision", "float32"),
)
SAVING = ("--checkpoint-every", "16")  # at every second step, so that much of the time is spent saving
ROUNDS = 9


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    """Start `denoised train`: a new run, or resume the one in `out`."""
    command = [sys.executable, "-m", "denoised.model", "train", "--out", str(out), *OPTIONS, *options]
    resumed = ["--resume"] if RunFolder(out).checkpoints() else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *resumed], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def newest(out: Path) -> int:
    """The step of the newest checkpoint; −1 if there is none."""
    found = RunFolder(out).checkpoints()
    return int(found[-1].stem.removeprefix("step-")) if found else -1


def half_written(out: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):  # gone while the folder was read
        return list(out.rglob(".*.tmp"))
    return []


def wait_for_progress(process: subprocess.Popen[str], out: Path) -> None:
    before = newest(out)
    while newest(out) <= before:
        assert process.poll() is None, "the program ended by itself"
        time.sleep(0.01)


def wait_for_a_save(process: subprocess.Popen[str], out: Path) -> None:
    """Leave the program stopped in the middle of a save: on a busy machine it would finish the one that was seen."""
    wait_for_progress(process, out)
    while True:
        assert process.poll() is None, "the program ended by itself"
        if not half_written(out):
            continue
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the program ended by itself"
        if half_written(out):
            return
        process.send_signal(signal.SIGCONT)


@pytest.mark.faults
def test_a_run_killed_at_any_moment_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    """Weights, moving average, moments, generators and order, on the CPU in float32."""
    out, draw = tmp_path / "run", random.Random(0)
    moments = {
        "while it starts or resumes": lambda process: time.sleep(draw.uniform(0, 4)),
        "in the middle of a save": lambda process: wait_for_a_save(process, out),
        "between": lambda process: (wait_for_progress(process, out), time.sleep(draw.uniform(0, 0.3))),
    }
    torn = 0
    for _ in range(ROUNDS):
        for wait in moments.values():
            process = start(out, *SAVING)
            wait(process)
            process.kill()
            process.communicate()
            torn += bool(half_written(out))
            if newest(out) >= 0:
                resumed = Trainer(CONFIG, load_dataset(Path("digits")))
                resumed.load_state(load_file(RunFolder(out).checkpoints()[-1]))
                assert resumed.step == newest(out)
                if (out / "model" / "model_card.json").exists():  # from the first save on
                    assert load_model(out / "model").card.labels == list("0123456789")
    assert torn >= ROUNDS, "some kills interrupted a save"
    assert 0 < newest(out) < CONFIG.steps, "the kills came before the end of the run"

    process = start(out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert half_written(out) == []
    whole = Trainer(CONFIG, load_dataset(Path("digits")))
    while whole.step < CONFIG.steps:
        whole.train_step()
    found = load_file(RunFolder(out).checkpoints()[-1])
    assert found.keys() == whole.state().keys()
    for name, value in whole.state().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)
