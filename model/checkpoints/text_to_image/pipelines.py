"""What kind of pipeline a folder holds, by the class that its `model_index.json` names. Imports no torch.

Text pipelines are served as a whole: tokenizer, text encoder, U-Net, autoencoder. Every other pipeline that consists of
more than a U-Net and a scheduler is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.folders import MODEL_INDEX, SCHEDULER_CONFIG
from denoised.model.checkpoints.weight_files import ENCODER, NETWORK, find_shards, find_weights
from denoised.model.errors import CheckpointError, abbreviate

# Served pipelines, with what follows "text_encoder" and "tokenizer" in the names of their parts.
TEXT_PIPELINES = {
    "StableDiffusionPipeline": ("",),
    "StableDiffusionXLPipeline": ("", "_2"),
    "LatentConsistencyModelPipeline": ("",),
    "StableDiffusionInpaintPipeline": ("",),
    "StableDiffusionXLInpaintPipeline": ("", "_2"),
    "StableDiffusionInstructPix2PixPipeline": ("",),
}
# Parts that do not change the picture. The safety checker replaces pictures after they are made; it is not run.
UNUSED_PARTS = ("safety_checker", "feature_extractor")
SERVED = f"pipelines of a U-Net and a scheduler, {', '.join(TEXT_PIPELINES)}"

# Beginnings of class names, the more specific ones first, with what such a folder holds.
OTHER_PIPELINES = (
    ("StableDiffusionXLImg2Img", "a Stable Diffusion XL model that redraws pictures, such as the refiner"),
    ("StableDiffusionXLInstructPix2Pix", "a Stable Diffusion XL model that edits pictures by instructions"),
    ("StableDiffusionXL", "a Stable Diffusion XL model with further parts"),
    ("StableDiffusion3", "a Stable Diffusion 3 model, a transformer"),
    ("StableDiffusionImg2Img", "a model that redraws pictures"),
    ("StableDiffusionDepth2Img", "a model that needs depth maps"),
    ("StableDiffusionUpscale", "a model for upscaling"),
    ("StableDiffusionLatentUpscale", "a model for upscaling"),
    ("StableDiffusionControlNet", "a model with a ControlNet"),
    ("StableDiffusion", "a Stable Diffusion model with further parts"),
    ("LatentConsistency", "a latent consistency model that redraws pictures"),
    ("StableUnCLIP", "an unCLIP model, which needs a prior"),
    ("UnCLIP", "an unCLIP model, which needs a prior"),
    ("Kandinsky", "a Kandinsky model"),
    ("Kolors", "a Kolors model"),
    ("IF", "a DeepFloyd IF model"),
    ("DiT", "a diffusion transformer"),
    ("PixArt", "a diffusion transformer"),
    ("HunyuanDiT", "a diffusion transformer"),
    ("Sana", "a diffusion transformer"),
    ("Lumina", "a diffusion transformer"),
    ("Flux", "a flow-matching transformer"),
    ("AuraFlow", "a flow-matching transformer"),
    ("QwenImage", "a flow-matching transformer"),
    ("Wuerstchen", "a Würstchen model"),
    ("StableCascade", "a Stable Cascade model"),
    ("StableVideo", "a model of videos"),
    ("AudioLDM", "a model of sounds"),
    ("LDM", "a latent diffusion model without CLIP"),
)
# A part that names the family of a pipeline whose class is in no list.
TELLING_PARTS = {
    "transformer": "a diffusion transformer",
    "prior": "a model with a prior",
    "controlnet": "a model with a ControlNet",
    "text_encoder": "a text-to-image model of another family",
}


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
    if isinstance(name, str) and name in TEXT_PIPELINES:
        check_parts(path, raw)
        return True
    if (content := _content_of(str(name), _parts(raw))) is not None:
        raise CheckpointError(f"{path}: {abbreviate(name)} is {content}, which is not served (served: {SERVED})")
    return False


def pipeline_class(folder: Path) -> str:
    """The class of a text pipeline, one of `TEXT_PIPELINES`."""
    return str(read_json(folder / MODEL_INDEX)["_class_name"])


def encoder_parts(name: str) -> list[str]:
    """The parts of a pipeline class that are text encoders."""
    return [f"text_encoder{suffix}" for suffix in TEXT_PIPELINES[name]]


def tokenizer_parts(name: str) -> list[str]:
    """The parts of a pipeline class that are tokenizers, in the order of its encoders."""
    return [f"tokenizer{suffix}" for suffix in TEXT_PIPELINES[name]]


def needed_parts(name: str) -> list[str]:
    """The parts that a pipeline of a class consists of."""
    return ["unet", "scheduler", "vae", *tokenizer_parts(name), *encoder_parts(name)]


def check_parts(path: Path, raw: dict[str, Any]) -> None:
    """Check that a text pipeline has the parts that it needs, and none that would change its pictures.

    raw: the content of `model_index.json`.

    Raises:
        CheckpointError: naming the first part that is missing or not supported.
    """
    present, needed = _parts(raw), needed_parts(raw["_class_name"])
    if raw.get("requires_aesthetics_score"):
        raise CheckpointError(
            f"{path}: requires_aesthetics_score = True: the folder holds the refiner of Stable Diffusion XL, which "
            "finishes the latents of another model, and is not served"
        )
    if missing := [name for name in needed if name not in present]:
        raise CheckpointError(f"{path}: the pipeline has no {missing[0]} (needed: {', '.join(needed)})")
    for part in sorted(present):
        if part not in (*needed, *UNUSED_PARTS):
            raise CheckpointError(
                f"{path}: the pipeline's {abbreviate(part)} is not supported (supported: {', '.join(needed)})"
            )


def _parts(raw: dict[str, Any]) -> set[str]:
    return {name for name, value in raw.items() if isinstance(value, list) and any(value)}


def _content_of(name: str, parts: set[str]) -> str | None:
    """What a folder of a class that is not served holds; None if nothing speaks against a pipeline of pixels."""
    for beginning, content in OTHER_PIPELINES:
        if name.startswith(beginning):
            return content
    return next((content for part, content in TELLING_PARTS.items() if part in parts), None)


def check_text_weights(folder: Path) -> None:
    """Check that the files of a text pipeline exist, without reading them whole.

    Raises:
        CheckpointError: naming the first file that is missing, or not what its name says.
    """
    encoders = [(part, ENCODER) for part in encoder_parts(pipeline_class(folder))]
    for part, stem in (("unet", NETWORK), ("vae", NETWORK), *encoders):
        read_json(folder / part / "config.json")
        find_shards(find_weights(folder / part, stem))
    read_json(folder / SCHEDULER_CONFIG)


def unused_parts(folder: Path) -> list[str]:
    """The parts of a text pipeline that are not run."""
    raw = read_json(folder / MODEL_INDEX)
    return [part for part in UNUSED_PARTS if isinstance(raw.get(part), list) and any(raw[part])]
