"""What kind of pipeline a folder holds, by the class that its `model_index.json` names. Imports no torch.

Text pipelines are served as a whole: tokenizer, text encoder, U-Net, autoencoder. Every other pipeline that consists of
more than a U-Net and a scheduler is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from denoised.model.checkpoints.bounded_files import read_json
from denoised.model.checkpoints.folders import MODEL_INDEX, SCHEDULER_CONFIG
from denoised.model.checkpoints.weight_files import ENCODER, NETWORK, find_shards, find_weights
from denoised.model.errors import CheckpointError, abbreviate

TEXT_PIPELINES = ("StableDiffusionPipeline",)
NEEDED_PARTS = ("unet", "scheduler", "vae", "tokenizer", "text_encoder")
# Parts that do not change the picture. The safety checker replaces pictures after they are made; it is not run.
UNUSED_PARTS = ("safety_checker", "feature_extractor")
SERVED = "pipelines of a U-Net and a scheduler, and StableDiffusionPipeline"

# Beginnings of class names, the more specific ones first, with what such a folder holds.
OTHER_PIPELINES = (
    ("StableDiffusionXL", "a Stable Diffusion XL model"),
    ("StableDiffusion3", "a Stable Diffusion 3 model, a transformer"),
    ("StableDiffusionInpaint", "a model for inpainting"),
    ("StableDiffusionInstructPix2Pix", "a model that edits pictures by instructions"),
    ("StableDiffusionDepth2Img", "a model that needs depth maps"),
    ("StableDiffusionUpscale", "a model for upscaling"),
    ("StableDiffusionLatentUpscale", "a model for upscaling"),
    ("StableDiffusionControlNet", "a model with a ControlNet"),
    ("LatentConsistency", "a latent consistency model"),
    ("Kandinsky", "a Kandinsky model"),
    ("Kolors", "a Kolors model"),
    ("IF", "a DeepFloyd IF model"),
    ("DiT", "a diffusion transformer"),
    ("PixArt", "a diffusion transformer"),
    ("Flux", "a flow-matching transformer"),
    ("Wuerstchen", "a Würstchen model"),
    ("StableCascade", "a Stable Cascade model"),
    ("LDM", "a latent diffusion model without CLIP"),
)


def is_text_pipeline(folder: Path) -> bool:
    """Whether a folder holds a text-to-image pipeline that is served.

    Raises:
        CheckpointError: for a pipeline of a class that is not served, in one line that says what it is.
    """
    path = folder / MODEL_INDEX
    if not path.is_file():
        return False
    raw = read_json(path)
    name = raw.get("_class_name")
    if name in TEXT_PIPELINES:
        check_parts(path, raw)
        return True
    for beginning, content in OTHER_PIPELINES:
        if isinstance(name, str) and name.startswith(beginning):
            raise CheckpointError(f"{path}: {abbreviate(name)} is {content}, which is not served (served: {SERVED})")
    return False


def check_parts(path: Path, raw: dict[str, Any]) -> None:
    """Check that a text pipeline has the parts that it needs, and none that would change its pictures.

    raw: the content of `model_index.json`.

    Raises:
        CheckpointError: naming the first part that is missing or not supported.
    """
    present = {name for name, value in raw.items() if isinstance(value, list) and any(value)}
    if missing := [name for name in NEEDED_PARTS if name not in present]:
        raise CheckpointError(f"{path}: the pipeline has no {missing[0]} (needed: {', '.join(NEEDED_PARTS)})")
    for part in sorted(present):
        if part not in (*NEEDED_PARTS, *UNUSED_PARTS):
            supported = ", ".join(NEEDED_PARTS)
            raise CheckpointError(
                f"{path}: the pipeline's {abbreviate(part)} is not supported (supported: {supported})"
            )


def check_text_weights(folder: Path) -> None:
    """Check that the files of a text pipeline exist, without reading them whole.

    Raises:
        CheckpointError: naming the first file that is missing, or not what its name says.
    """
    for part, stem in (("unet", NETWORK), ("vae", NETWORK), ("text_encoder", ENCODER)):
        read_json(folder / part / "config.json")
        find_shards(find_weights(folder / part, stem))
    read_json(folder / SCHEDULER_CONFIG)


def unused_parts(folder: Path) -> list[str]:
    """The parts of a text pipeline that are not run."""
    raw = read_json(folder / MODEL_INDEX)
    return [part for part in UNUSED_PARTS if isinstance(raw.get(part), list) and any(raw[part])]
