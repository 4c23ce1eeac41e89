"""Options of the commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from denoised.command_line.options import option

Out = Annotated[Path, option("--out", help="the folder of the run; the model is written to OUT/model")]
Resume = Annotated[bool, option("--resume", help="continue from the newest checkpoint in OUT")]
Device = Annotated[str, option("--device", help="cpu, cuda or mps")]
SampleEvery = Annotated[int, option("--sample-every", help="images between two grids of samples", min=1)]
CheckpointEvery = Annotated[int, option("--checkpoint-every", help="images between two checkpoints", min=1)]
