"""Options that the commands of the server and of its workers share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from denoised.command_line.options import env

DEFAULT_REDIS = "redis://127.0.0.1:6379/0"
# Defaults for the environment of programs that run torch. Without it, OpenMP's threads spin for about a millisecond at
# each barrier; next to another busy program, that made the network 70 times slower (docs/decisions.md).
TORCH_ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="a diffusers folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub, served in addition to the bundled "
        "models; repeatable [env var: DENOISED_MODELS]",
    ),
]
ModelsFolder = Annotated[
    Path | None,
    env("MODELS_FOLDER", "folder of model folders, which are served, replaced and removed as they change"),
]
Loras = Annotated[Path | None, env("LORAS", "folder of low-rank adapters (LoRA) for the models that take a prompt")]
Controlnets = Annotated[Path | None, env("CONTROLNETS", "folder of ControlNets for the models that take a prompt")]
MaxBatch = Annotated[
    int | None, env("MAX_BATCH", "largest batch, in images; measured at startup if not set", min=1, max=1024)
]
GIB = 1 << 30
MAX_SECONDS = 315_360_000  # ten years; Redis refuses times to live that are much longer
ResultsUrl = Annotated[
    str | None,
    env("RESULTS_URL", "where pictures, frames and resume points lie: file:///PATH or s3://BUCKET/PREFIX (Redis)"),
]
MaxFrameBytes = Annotated[
    int, env("MAX_FRAME_BYTES", "most bytes of frames at --results-url; the oldest are deleted first", min=1)
]
MaxPictureBytes = Annotated[
    int, env("MAX_PICTURE_BYTES", "most bytes of pictures at --results-url; new jobs are refused beyond", min=1)
]
MaxResumeBytes = Annotated[int, env("MAX_RESUME_BYTES", "most bytes of resume points at --results-url", min=1)]
ResultTtl = Annotated[int, env("RESULT_TTL", "how long results are kept, in seconds", min=1, max=MAX_SECONDS)]
