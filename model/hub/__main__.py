"""`denoised pull`: download models from the Hugging Face Hub. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from denoised.command_line.console import escape_unencodable
from denoised.command_line.options import SingleCommand, option
from denoised.model.command_line import report_errors
from denoised.model.hub.hub_name import HubName
from denoised.model.hub.terminal import terminal_puller

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=SingleCommand)
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="models, as OWNER/NAME or OWNER/NAME@REVISION")],
    precision: Annotated[
        Literal["float32", "tf32", "float16", "bfloat16"],
        option(
            "--precision", help="precision to serve in; bfloat16 and float16 download half-size weights, if any exist"
        ),
    ] = "float32",
    if_missing: Annotated[
        bool, option("--if-missing", help="use what is in the cache, without asking for a newer commit")
    ] = False,
) -> None:
    """Download models from the Hugging Face Hub into its cache, and print their folders.

    Only what is served is downloaded: configs, tokenizers and safetensors. `denoised serve --model OWNER/NAME` does the
    same when it starts. HF_HOME is the cache's folder, HF_TOKEN the token for gated and private models.
    """
    with report_errors("pull"):
        parsed = [_parse(text) for text in names]
        puller = terminal_puller()
        for name in parsed:
            folder = puller.find_cached(name) if if_missing else None
            typer.echo(folder or puller.pull(name, precision))


def _parse(text: str) -> HubName:
    name = HubName.parse(text)
    if name is None:
        message = f"{text!r} is not a model name: write OWNER/NAME or OWNER/NAME@REVISION"
        raise typer.BadParameter(message)
    return name


if __name__ == "__main__":
    escape_unencodable()
    cli(prog_name="denoised pull")
