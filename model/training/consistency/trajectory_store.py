"""Trajectories in the folder of a run, drawn once: OUT/trajectories/00000500.safetensors holds those before 500.

A stopped run loses at most one file. Every file is written completely or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.training.consistency.trajectories import Teacher, Trajectories, drawn_labels

PART = 500  # trajectories of a file
BATCH = 100  # of an evaluation of the network
FIRST_SEED = 10_000_000  # far from the seeds that measurements take


def draw_trajectories(
    folder: Path, teacher: Teacher, count: int, advance: Callable[[int], None] = lambda count: None
) -> Trajectories:
    """The first `count` trajectories; those that a file of the folder holds are not drawn again.

    advance: called with the number of trajectories that were read or drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, count, PART):
        size = min(PART, count - start)
        path = folder / f"{start + size:08d}.safetensors"
        parts.append(_read(path) or _draw(path, teacher, start, size))
        advance(size)
    return Trajectories.joined(parts)


def _draw(path: Path, teacher: Teacher, start: int, size: int) -> Trajectories:
    classes = len(teacher.model.card.labels)
    part = Trajectories.joined(
        [
            teacher.draw(drawn_labels(first, min(BATCH, start + size - first), classes), FIRST_SEED + first)
            for first in range(start, start + size, BATCH)
        ]
    )
    tensors = {name: getattr(part, name).contiguous() for name in ("labels", "states", "ends")}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    return part


def _read(path: Path) -> Trajectories | None:
    """The trajectories of a file; None if there is none that can be read."""
    try:
        return Trajectories(**load_file(path))
    except (SafetensorError, OSError, TypeError):
        return None
