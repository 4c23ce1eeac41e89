"""`denoised convert`: make a model folder of a checkpoint in a single file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from denoised.command_line.console import escape_unencodable
from denoised.command_line.options import SingleCommand, option
from denoised.model.command_line import report_errors
from denoised.model.conversion.scheduler_content import Prediction
from denoised.model.errors import CheckpointError

CLIP = "openai/clip-vit-large-patch14"  # its vocabulary is that of all of Stable Diffusion's text encoders

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=SingleCommand)
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a .safetensors file with the original names")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a new folder, which `denoised serve` takes")],
    tokenizer: Annotated[
        str | None,
        option(
            "--tokenizer",
            help="CLIP's vocabulary, which the file does not hold: a tokenizer's folder, or OWNER/NAME on the hub "
            f"[default: {CLIP}]",
        ),
    ] = None,
    prediction: Annotated[
        Prediction | None,
        option("--prediction", help="what the U-Net predicts; 2.x files do not say [default: as usual in its family]"),
    ] = None,
) -> None:
    """Turn a checkpoint in a single file into a model folder: Stable Diffusion 1.x, 2.x or SDXL.

    The file's names and shapes say which model it is. Weights keep their precision. No pickle is opened.
    """
    with report_errors("convert"):
        from denoised.model.conversion.convert import check_target, plan_conversion, write_conversion
        from denoised.model.conversion.single_file import SingleFile

        check_target(folder)
        conversion = plan_conversion(SingleFile.open(file), prediction)
        for line in conversion.describe():
            typer.echo(line, err=True)
        write_conversion(conversion, folder, _find_tokenizer(tokenizer or CLIP))
        typer.echo(folder)


def _find_tokenizer(text: str) -> Path:
    """A tokenizer's folder: a folder as it is, or downloaded from the hub."""
    from denoised.model.hub.hub_name import HubName
    from denoised.model.hub.terminal import terminal_puller

    if Path(text).is_dir():
        return Path(text)
    if (name := HubName.parse(text)) is None:
        raise CheckpointError(f"--tokenizer {text}: no such folder")
    typer.echo(f"the file holds no vocabulary; taking that of {name} (--tokenizer names another)", err=True)
    return terminal_puller().pull_tokenizer(name)


if __name__ == "__main__":
    escape_unencodable()
    cli(prog_name="denoised convert")
