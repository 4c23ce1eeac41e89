"""The commands that train models and measure them; `quality` and `quality-text` are for `make`."""

from __future__ import annotations

import torch
import typer

from denoised.command_line.console import escape_unencodable
from denoised.command_line.options import CommandGroup
from denoised.model.evaluation.evaluate_cli import evaluate
from denoised.model.evaluation.features_cli import train_features
from denoised.model.evaluation.level_fitting.learn_levels_cli import learn_levels
from denoised.model.evaluation.likelihood_cli import likelihood
from denoised.model.evaluation.quality_cli import quality
from denoised.model.evaluation.text_to_image.evaluate_text_cli import evaluate_text
from denoised.model.evaluation.text_to_image.text_quality_cli import quality_text
from denoised.model.evaluation.text_to_image.train_judge_cli import train_judge
from denoised.model.training.consistency.tune_consistency_cli import tune_consistency
from denoised.model.training.fine_tuning.fine_tune_cli import fine_tune
from denoised.model.training.run.ema_cli import ema
from denoised.model.training.text_to_image.export_text_cli import export_text
from denoised.model.training.text_to_image.train_text_cli import train_text
from denoised.model.training.train_cli import train

app = typer.Typer(cls=CommandGroup, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Train models and measure them."""


for _command in (
    train,
    train_text,
    export_text,
    ema,
    fine_tune,
    tune_consistency,
    train_features,
    train_judge,
    evaluate,
    evaluate_text,
    quality,
    quality_text,
    likelihood,
    learn_levels,
):
    app.command()(_command)


if __name__ == "__main__":
    escape_unencodable()
    torch.set_float32_matmul_precision("highest")
    app(prog_name="denoised")
