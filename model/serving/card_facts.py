"""What a model's card says about its networks, its defaults and its samplers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from denoised.model.checkpoints.card_file import CardFile, LearnedLevels
from denoised.model.checkpoints.text_to_image.text_pipeline import TextPipeline
from denoised.model.diffusion.grids import SPACINGS, Grid, noise_ratios, solver_levels
from denoised.model.diffusion.noise import Float64, NoiseSchedule
from denoised.model.diffusion.published_levels import published_spacings
from denoised.model.diffusion.sampler_descriptions import DESCRIPTIONS
from denoised.model.diffusion.samplers import SAMPLERS, offered_samplers
from denoised.model.diffusion.spacings import RATIO_SPACINGS
from denoised.model.networks.text_unet.text_level_costs import text_level_costs
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.unet.level_costs import level_costs
from denoised.model.networks.unet.unet import UNet
from denoised.model.serving.card import CardGrid, CardLatent, CardLevel, CardNetwork
from denoised.model.serving.picture_inputs import EDIT, input_kind
from denoised.model.serving.plan_compiler import LEARNED

PREVIEWS = ["x0", "xt", "both", "all"]
SKETCHED_RATIOS = 65  # of the noise levels that a card names
MAX_SCALE = 2  # how much wider and higher than its own size a latent model's images may be, in the mean


def pipeline_facts(pipeline: TextPipeline) -> dict[str, Any]:
    """What the card says about the parts of a pipeline: its sizes, its inputs, its training and its defaults."""
    unet, vae = pipeline.unet.config, pipeline.autoencoder.config
    height, width = pipeline.image_size
    return {
        "width": width,
        "height": height,
        "channels": vae.out_channels,
        "labels": [],
        "prompts": True,
        "pictures": input_kind(unet.in_channels, vae.latent_channels),
        "image_guidance": input_kind(unet.in_channels, vae.latent_channels) == EDIT,
        "prompt_guide": pipeline.card.prompt_guide,
        "guidance_embedded": unet.time_cond_proj_dim is not None,
        "size_multiple": vae.downscale * unet.downscale,
        "max_pixels": MAX_SCALE**2 * width * height,
        "latent": CardLatent(channels=vae.latent_channels, downscale=vae.downscale),
        "timesteps": pipeline.schedule.timesteps,
        "prediction_type": pipeline.noise.prediction_type,
        "default": pipeline.default,
        "digest": pipeline.digest,
        "distilled": pipeline.distilled,
    }


def network_facts(unet: UNet | TextUNet, height: int, width: int) -> CardNetwork:
    """What the card says about the network, for images of height × width pixels, or latents."""
    costs = text_level_costs(unet, height, width) if isinstance(unet, TextUNet) else level_costs(unet, height, width)
    levels = [CardLevel(**asdict(cost)) for cost in costs]
    return CardNetwork(parameters=sum(parameter.numel() for parameter in unet.parameters()), levels=levels)


def said_by(card: CardFile) -> dict[str, Any]:
    """What the folder's card says for people."""
    return {key: getattr(card, key) for key in ("description", "data", "license", "credits")}


def sampler_facts(schedule: NoiseSchedule, grid: Grid, learned: Sequence[LearnedLevels] = ()) -> dict[str, Any]:
    """What the card says about the samplers, the frames and the grid."""
    spacing, ratios = grid.ratio_spacing, noise_ratios(schedule)
    offered = {name: SAMPLERS[name] for name in offered_samplers(grid)}
    taking_spacing = [name for name, sampler in offered.items() if sampler.takes_spacing]
    visited = {name: sampler.visited_timesteps(schedule, grid) for name, sampler in offered.items()}
    return {
        "previews": PREVIEWS,
        "samplers": list(offered),
        "sampler_descriptions": {name: DESCRIPTIONS[name] for name in offered},
        "eta_samplers": [name for name, sampler in offered.items() if sampler.takes_eta],
        "spacings": [*SPACINGS, *RATIO_SPACINGS, *published_spacings(ratios), *([LEARNED] if learned else [])],
        "spacing_samplers": taking_spacing,
        "karras_samplers": taking_spacing,
        "solver_samplers": [name for name, sampler in offered.items() if sampler.levels is solver_levels],
        "stages": {name: sampler.stages for name, sampler in offered.items() if sampler.stages > 1},
        "extra_evaluations": {name: sampler.extra for name, sampler in offered.items() if sampler.extra},
        "grid": CardGrid(
            spacing=grid.spacing,
            steps_offset=grid.steps_offset,
            karras=spacing is not None and spacing.name == "karras",
            ratio_spacing=spacing.name if spacing is not None else None,
            sigma_min=float(ratios[0]),
            sigma_max=float(ratios[-1]),
            ratios=_sketch(ratios),
            published=published_spacings(ratios),
            learned=list(learned),
            consistency=list(grid.consistency_levels),
            visited={name: count for name, count in visited.items() if count < schedule.timesteps},
        ),
    }


def _sketch(ratios: Float64) -> list[float]:
    """Some of the noise levels, at equal distances, in four digits."""
    times = np.linspace(0, len(ratios) - 1, min(SKETCHED_RATIOS, len(ratios)))
    sketched = np.exp(np.interp(times, np.arange(len(ratios)), np.log(ratios)))
    return [float(f"{ratio:.4g}") for ratio in sketched]
