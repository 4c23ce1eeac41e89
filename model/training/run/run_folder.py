"""The files of a training run.

config.json                             the settings that determine the numbers of the run
metrics.csv                             step, images, loss, gradient norm, learning rate, images/s
loss.png                                the loss curve, if matplotlib is installed
samples/00012800.png                    a grid of samples from the averaged weights; the last one is of the end
checkpoints/step-00000100.safetensors   the newest two, each written atomically
snapshots/step-00000100.safetensors     averages of the weights that `denoised ema` combines
model/                                  the averaged weights as a diffusers folder, ready to serve
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoised.command_line.system_errors import describe_system_error
from denoised.model.checkpoints.atomic import write_text_atomically
from denoised.model.errors import TrainingError
from denoised.model.training.learning_config import Config, LearningConfig

CHANGEABLE = ("images", "learning_rate")  # settings that may change when a run is resumed


@dataclass(frozen=True)
class RunFolder:
    """Where each file of a run is, and the configuration stored there."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def loss_plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def sample_grid(self, images_seen: int) -> Path:
        return self.path / "samples" / f"{images_seen:08d}.png"

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:08d}.safetensors"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.safetensors"))

    def snapshot(self, step: int) -> Path:
        return self.path / "snapshots" / f"step-{step:08d}.safetensors"

    def snapshots(self) -> list[Path]:
        """Complete snapshots, oldest first."""
        return sorted((self.path / "snapshots").glob("step-*.safetensors"))

    def check_new(self) -> None:
        """Check that a new run can be created here, before its data are read. Creates nothing.

        Raises:
            TrainingError: if the folder already holds a run, or cannot be written.
        """
        if self.checkpoints():
            raise TrainingError(
                f"{self.path} already holds a run: continue it with --resume, or name another folder with --out"
            )
        try:
            # The folder is created later, so the nearest one that exists shows whether that will work.
            existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            message = f"{self.path} cannot be written ({error.strerror}): name another folder with --out"
            raise TrainingError(message) from error

    def create(self, config: LearningConfig) -> None:
        """Create the folder of a new run.

        Raises:
            TrainingError: if the folder already holds a run, or cannot be written.
        """
        self.check_new()
        for name in ("checkpoints", "samples"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        self.write_config(config)

    def write_config(self, config: LearningConfig) -> None:
        """Store the settings that determine the numbers of the run from now on."""
        write_text_atomically(self.config_file, json.dumps(dataclasses.asdict(config), indent=2) + "\n")

    def read_config(self, config_type: type[Config]) -> Config:
        """The configuration of the run.

        Raises:
            TrainingError: if there is none, or it cannot be read.
        """
        try:
            return config_type(**json.loads(self.config_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"{self.path} holds no run to resume ({describe_system_error(error)})") from error

    def config_to_resume(self, given: Mapping[str, Any], config_type: type[Config]) -> Config:
        """The run's own settings with a new length or learning rate, where one is given.

        Raises:
            TrainingError: if any other given setting differs, by name.
        """
        stored = self.read_config(config_type)
        for name, value in given.items():
            if name not in CHANGEABLE and value != getattr(stored, name):
                raise TrainingError(
                    f"{name} = {value} differs from the run's {getattr(stored, name)}: "
                    f"a resumed run keeps its settings (only {' and '.join(CHANGEABLE)} may change)"
                )
        return dataclasses.replace(stored, **given)

    def discard_after(self, step: int) -> None:
        """Remove partially written files, and snapshots and metrics of steps after `step`, which will be repeated."""
        for temporary in self.path.rglob(".*.tmp"):
            temporary.unlink()
        for snapshot in self.snapshots():
            if snapshot > self.snapshot(step):
                snapshot.unlink()
        if not self.metrics_file.exists():
            return
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
        header, *rows = [line for line in lines if line.endswith("\n")] or [""]  # the last line may be incomplete
        kept = [row for row in rows if int(row.split(",")[0]) <= step]
        if kept:
            write_text_atomically(self.metrics_file, "".join([header, *kept]))
        else:
            self.metrics_file.unlink()
