"""The sampler, steps and guidance of a text pipeline whose requests name none.

A model card in the folder has precedence. Without one, the defaults are those of the pipeline's class in diffusers,
except for distilled models, which take few steps and no guidance. diffusers leaves that to its caller.
"""

from __future__ import annotations

from pathlib import Path

from denoised.model.checkpoints.card_file import CARD_FILE, CardFile, Defaults
from denoised.model.checkpoints.noise_settings import NoiseSettings
from denoised.model.checkpoints.reading import resolve_defaults
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.errors import CheckpointError
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

GUIDANCE_SCALES = {
    "StableDiffusionPipeline": 7.5,
    "StableDiffusionXLPipeline": 5.0,
    "LatentConsistencyModelPipeline": 8.5,
    "StableDiffusionInpaintPipeline": 7.5,
    "StableDiffusionXLInpaintPipeline": 7.5,
    "StableDiffusionInstructPix2PixPipeline": 7.5,
}
DISTILLED_STEPS = 4
CONSISTENCY_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
EULER_SCHEDULERS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


def resolve_text_defaults(
    folder: Path, card: CardFile, noise: NoiseSettings, schedule: NoiseSchedule, kind: str, unet: TextUNetConfig
) -> Defaults:
    """The defaults of a folder. kind: the class of its pipeline.

    Raises:
        CheckpointError: if the card's do not fit the pipeline.
    """
    if card.consistency_levels:
        raise CheckpointError(f"{folder / CARD_FILE}: consistency_levels are for models of pixels")
    default = resolve_defaults(folder, card, noise.sampler, schedule, unconditional=True)
    takes_guidance = unet.time_cond_proj_dim is not None
    changes: dict[str, object] = {"guidance_scale": GUIDANCE_SCALES[kind]}
    if takes_guidance or is_distilled(noise):
        changes["steps"] = min(DISTILLED_STEPS, schedule.timesteps)
    if is_distilled(noise) and not takes_guidance:
        changes["guidance_scale"] = 1.0
    given = card.default.model_fields_set
    return default.model_copy(update={key: value for key, value in changes.items() if key not in given})


def is_distilled(noise: NoiseSettings) -> bool:
    """Whether a scheduler's file is that of a model for a few steps without guidance.

    Its class is one of consistency models, or it is Euler's method on trailing timesteps with noise prediction, as in
    SD-Turbo, SDXL-Turbo and SDXL-Lightning. Other models with trailing timesteps have zero terminal SNR, and none of
    them predicts noise.
    """
    name = noise.keys["_class_name"]
    trailing = noise.keys.get("timestep_spacing") == "trailing" and noise.prediction_type == "epsilon"
    return name in CONSISTENCY_SCHEDULERS or (name in EULER_SCHEDULERS and trailing)
