"""Pictures of text models for the tests that compare them with diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.sampling import sample
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, SCHEDULER, picture_of

STEPS = 8
LEVELS = 2  # of 255, how far a pixel may be from diffusers'
# For each sampler diffusers' class, its settings, and our options that mean the same.
SCHEDULERS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}, {}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "leading"}, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, {"levels": LevelChoice(karras=True)}),
    "plms": (PNDMScheduler, {}, {}),
}


def picture(model: LatentModel, seed: int = 5, size: tuple[int, int] | None = None, **options: Any) -> Any:
    """(H, W, 3) the picture that `sample` makes."""
    width, height = size or (None, None)
    request = ConditioningRequest(
        prompt=options.pop("prompt", PROMPT),
        negative_prompt=options.pop("negative_prompt", NEGATIVE_PROMPT),
        width=width,
        height=height,
        clip_skip=options.pop("clip_skip", 0),
        emphasis=options.pop("emphasis", False),
    )
    return model.decode(sample(model, [request], seed=seed, **options))[0]


def picture_of_scheduler(pipeline: Any, kind: Any, settings: dict[str, Any], guidance_scale: float) -> Any:
    """(H, W, 3) the picture that diffusers makes of the same request with a scheduler."""
    pipeline.scheduler = kind.from_config({**SCHEDULER, **settings})
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": guidance_scale}
    return picture_of(pipeline, 5, num_inference_steps=STEPS, **text)


def difference(one: Any, other: Any) -> int:
    """How far two pictures are apart, of 255."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())
