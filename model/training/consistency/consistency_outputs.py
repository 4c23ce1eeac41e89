"""What a run of consistency tuning writes besides its log: checkpoints, a model folder, and grids of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.checkpoints.card_file import CardFile, Defaults, read_card_file
from denoised.model.checkpoints.folders import find_files
from denoised.model.checkpoints.writing import save_model
from denoised.model.diffusion.samplers import CONSISTENCY
from denoised.model.serving.loading import load_model
from denoised.model.serving.sampling import sample
from denoised.model.training.consistency.consistency_tuner import ConsistencyTuner
from denoised.model.training.consistency.trajectories import drawn_labels
from denoised.model.training.run.run_checkpoints import save_state
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.sample_grid import contact_sheet
from denoised.model.training.run.training_run import RunOutputs

DIGITS = 6  # of a noise level in the card
ROWS, MAX_COLUMNS = 4, 10  # of a grid of samples


def consistency_outputs(teacher: Path) -> RunOutputs[ConsistencyTuner]:
    """How a run writes its results. teacher: the model folder that is tuned."""
    card, scheduler = read_card_file(teacher), read_json(find_files(teacher).scheduler_config)

    def export(learner: ConsistencyTuner, path: Path) -> None:
        weights = {name: value.cpu().contiguous() for name, value in learner.ema.items()}
        save_model(path, learner.net.config, weights, scheduler, tuned_card(card, learner))

    def save(learner: ConsistencyTuner, folder: RunFolder) -> None:
        save_state(learner, folder)
        export(learner, folder.model)

    def draw(learner: ConsistencyTuner, folder: RunFolder) -> None:
        export(learner, folder.model)
        _save_grid(learner, folder)

    return RunOutputs(save, draw)


def tuned_card(teacher: CardFile, learner: ConsistencyTuner) -> CardFile:
    """The card of the tuned model. Guidance is in its weights, so it has no class "no label"."""
    levels = [float(f"{ratio:.{DIGITS}g}") for ratio in learner.levels.ratios]
    kept: Mapping[str, Any] = {
        name: getattr(teacher, name) for name in ("labels", "data", "license", "credits") if getattr(teacher, name)
    }
    return CardFile(
        **kept,
        description=f"{teacher.description} Tuned to draw in {len(levels)} evaluations or fewer.".lstrip(),
        unconditional=learner.net.class_embedding is None,
        default=Defaults(sampler=CONSISTENCY, steps=len(levels)),
        consistency_levels=levels,
        training={
            "images_seen": learner.images_seen,
            "steps": learner.step,
            "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
            **dataclasses.asdict(learner.config),
        },
    )


def _save_grid(learner: ConsistencyTuner, folder: RunFolder) -> None:
    """One column for each of the first classes."""
    model = load_model(folder.model, device=str(learner.device))
    columns = min(len(model.card.labels) or MAX_COLUMNS, MAX_COLUMNS)
    labels = drawn_labels(0, columns, len(model.card.labels)) * ROWS
    x0 = sample(model, labels, sampler=CONSISTENCY, steps=len(learner.levels))
    grid = contact_sheet(list(model.decode(x0)), columns)
    write_atomically(folder.sample_grid(learner.images_seen), lambda temporary: grid.save(temporary, format="png"))
