"""`denoised export-text`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console

from denoised.command_line.options import option
from denoised.model.command_line import report_errors
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.text_to_image.text_outputs import export_pipeline
from denoised.model.training.text_to_image.text_run import TextRun
from denoised.model.training.text_to_image.text_training_config import TextTrainingConfig


def export_text(
    run: Annotated[Path, option("--run", help="the folder of a run of denoised train-text, finished or not")],
    out: Annotated[Path, option("--out", help="the model folder to write")],
) -> None:
    """Write the averaged weights of a run's newest checkpoint as a folder that denoised and diffusers load.

    The run may be in progress. Its folder is only read.
    """
    console, folder = Console(), RunFolder(run)
    with report_errors("export-text"):
        config = folder.read_config(TextTrainingConfig)
        trainer = TextRun(folder, config, None, "cpu", console).trained()
        export_pipeline(trainer, out)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
        console.print(
            f"{trainer.images_seen:,} images: {out} ({size:.1f} MB)", highlight=False, soft_wrap=True, markup=False
        )
