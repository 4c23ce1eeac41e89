"""Snapshots of a run's averages, and the average of any width that they are combined to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.errors import TrainingError
from denoised.model.training.learner import Learner
from denoised.model.training.power_averages import (
    WIDTHS,
    Combination,
    Profile,
    check_width,
    combine,
    exponent,
    tensor_name,
)
from denoised.model.training.run.run_folder import RunFolder

STORED = torch.float16  # as in the paper; the combination then is off by about 2⁻¹² of each weight


@dataclass(frozen=True)
class AveragedWeights:
    """Weights with another average than training had.

    Attributes:
        tensors: by name, in float32.
        step: the step of the newest snapshot, at which the average ends.
        combination: of the snapshots, two at each step.
    """

    tensors: dict[str, Tensor]
    step: int
    combination: Combination


def save_snapshot(learner: Learner, folder: RunFolder) -> None:
    """Write the averages of this step, in float16; nothing if the run keeps none."""
    if learner.power_averages is None:
        return
    path = folder.snapshot(learner.step)
    path.parent.mkdir(exist_ok=True)
    tensors = {name: _compact(value) for name, value in learner.power_averages.tensors().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def average_of_width(folder: RunFolder, width: float) -> AveragedWeights:
    """The average of a width at the newest snapshot, combined from all snapshots of a run.

    Raises:
        TrainingError: for a width that is out of range, and a run without readable snapshots.
    """
    check_width(width)
    paths = folder.snapshots()
    if not paths:
        raise TrainingError(f"{folder.path / 'snapshots'} holds no snapshots: train with --snapshots 16")
    steps = [int(path.stem.removeprefix("step-")) for path in paths]
    profiles = [Profile(step, exponent(own)) for step in steps for own in WIDTHS]
    combination = combine(profiles, Profile(steps[-1], exponent(width)))
    return AveragedWeights(_sum(paths, combination), steps[-1], combination)


def _sum(paths: Sequence[Path], combination: Combination) -> dict[str, Tensor]:
    """Σ w_i·θ_i of each tensor; what is not a floating-point number is that of the newest snapshot."""
    total: dict[str, Tensor] = {}
    stored = [(path, width) for path in paths for width in WIDTHS]
    for (path, width), weight in zip(stored, combination.weights.tolist(), strict=True):
        for name, value in _read(path, width):
            if not value.is_floating_point():
                total[name] = value
            elif name in total:
                total[name].add_(value.float(), alpha=weight)
            else:
                total[name] = weight * value.float()
    return total


def _read(path: Path, width: float) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one average, one after another."""
    prefix = tensor_name(width, "")
    try:
        with safe_open(path, framework="pt") as file:
            for name in [name for name in file.keys() if name.startswith(prefix)]:  # noqa: SIM118, it is not a dict
                yield name.removeprefix(prefix), file.get_tensor(name)
    except SafetensorError as error:
        raise TrainingError(f"{path} is damaged ({error}): delete it to combine the other snapshots") from error


def _compact(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.to(STORED) if value.is_floating_point() else value
