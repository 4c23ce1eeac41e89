"""Build a served model from a folder; `model.checkpoints.reading` reads and checks the files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denoised.model.backends.numerics import PACKED, PER_IMAGE, Precision, with_kernels
from denoised.model.backends.packed_decoder import pack_decoder
from denoised.model.backends.packed_text_encoder import pack_text_encoder
from denoised.model.backends.selection import select_backend
from denoised.model.backends.text_backend import select_text_backend
from denoised.model.checkpoints.card_file import CardFile
from denoised.model.checkpoints.folders import model_name
from denoised.model.checkpoints.reading import read_checkpoint
from denoised.model.checkpoints.text_to_image.pipelines import is_text_pipeline, unused_parts
from denoised.model.checkpoints.text_to_image.text_pipeline import TextPipeline, read_text_pipeline
from denoised.model.diffusion.grids import SPACINGS, Grid, noise_ratios, solver_levels
from denoised.model.diffusion.noise import Float64, NoiseSchedule
from denoised.model.diffusion.sampler_descriptions import DESCRIPTIONS
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.diffusion.spacings import RATIO_SPACINGS
from denoised.model.serving.card import CardGrid, CardLatent, ModelCard
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.latent_pictures import LatentPictures, published_rgb
from denoised.model.serving.lora_adapters import FoundAdapters, find_adapters
from denoised.model.serving.picture_inputs import EDIT, input_kind
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.plan_compiler import PlanCompiler
from denoised.model.serving.prompt_encoder import ChunkEncoder, PromptEncoder

log = logging.getLogger("denoised.worker")

ZOO = Path(__file__).parents[1] / "zoo"
SKETCHED_RATIOS = 65  # of the noise levels that a card names
MAX_SCALE = 2  # how much wider and higher than its own size a latent model's images may be, in the mean


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be served.

    Attributes:
        model: On the fastest backend of its device; its card names the numerics.
        fallback: Why a faster backend is not available on this machine; None if this is the fastest.
        lora_problems: Why some adapters are left out.
    """

    model: PixelModel | LatentModel
    fallback: str | None
    lora_problems: Sequence[str] = ()


def load_for_serving(
    folder: Path | str,
    *,
    device: str = "cpu",
    name: str | None = None,
    max_images: int = 16,
    precision: Precision = "float32",
    loras: Path | None = None,
) -> LoadedModel:
    """Load a model on the fastest backend that gives an image the same bits at every batch size.

    loras: a folder of low-rank adapters; models of pixels take none.

    Raises:
        CheckpointError: see `load_model`; and for a pipeline that is not served, by its name.
    """
    if is_text_pipeline(Path(folder)):
        if unused := unused_parts(Path(folder)):
            log.info("%s: not run: %s", folder, ", ".join(unused))
        return load_text_for_serving(folder, device=device, name=name, max_images=max_images, loras=loras)
    model = load_model(folder, device=device, name=name, max_images=max_images)
    selection = select_backend(model.unet, model.shape, model.card.timesteps, device, precision)
    model.backend = selection.backend
    model.card = model.card.model_copy(update={"numerics": selection.numerics})
    return LoadedModel(model, selection.fallback)


def load_model(
    folder: Path | str, *, device: str = "cpu", name: str | None = None, max_images: int = 16, numerics: str = ""
) -> PixelModel:
    """Load a model of pixels from a diffusers folder, evaluated by PyTorch's own kernels.

    name: what requests call it; the folder's name if not given.

    Raises:
        CheckpointError: in one line that names the file, the key and the cause.
    """
    folder = Path(folder)
    checkpoint = read_checkpoint(folder)
    unet, noise = checkpoint.network, checkpoint.noise
    height, width = checkpoint.image_size
    grid = noise.grid(unet.config)
    card = ModelCard(
        name=name or model_name(folder),
        width=width,
        height=height,
        channels=unet.config.in_channels,
        labels=checkpoint.classes.labels,
        pictures="start",
        unconditional=checkpoint.classes.unconditional,
        timesteps=checkpoint.schedule.timesteps,
        prediction_type=noise.prediction_type,
        default=checkpoint.default,
        max_images=max_images,
        numerics=numerics,
        digest=checkpoint.digest,
        distilled=False,
        **_said_by(checkpoint.card),
        **sampler_facts(checkpoint.schedule, grid),
    )
    return PixelModel(unet.to(device), checkpoint.schedule, noise.prediction_type, grid, noise.clipping, card)


def load_text_model(
    folder: Path | str, *, device: str = "cpu", name: str | None = None, max_images: int = 16
) -> LatentModel:
    """Load a text-to-image model from a folder that `model.checkpoints.text_to_image.pipelines` recognizes.

    name: what requests call it; the folder's name if not given.

    Raises:
        CheckpointError: in one line that names the file, the key and the cause.
    """
    model = load_text_for_serving(folder, device=device, name=name, max_images=max_images).model
    assert isinstance(model, LatentModel)
    return model


def load_text_for_serving(
    folder: Path | str, *, device: str, name: str | None, max_images: int, loras: Path | None = None
) -> LoadedModel:
    """`load_text_model`, with the reason why a faster backend is not available."""
    folder = Path(folder)
    pipeline = read_text_pipeline(folder)
    noise, grid = pipeline.noise, pipeline.noise.grid(pipeline.unet.config)
    unet = pipeline.unet.eval().requires_grad_(False).to(device)
    found = find_adapters(loras, unet, pipeline.text_encoders)
    prompts = build_prompt_encoder(pipeline, device, found)
    pictures = _build_pictures(pipeline, device)
    selection = select_text_backend(unet, pipeline.schedule.timesteps, device, adapted=bool(found.listed))
    text, decoder = (PACKED if each.whole_batches else PER_IMAGE for each in (prompts, pictures))
    card = ModelCard(
        name=name or model_name(folder),
        max_clip_skip=max(0, prompts.max_clip_skip),
        loras=found.listed,
        max_images=max_images,
        numerics=with_kernels(selection.numerics, text=text, decoder=decoder),
        **_pipeline_facts(pipeline),
        **_said_by(pipeline.card),
        **sampler_facts(pipeline.schedule, grid),
    )
    model = LatentModel(
        selection.backend,
        torch.device(device),
        prompts,
        pictures,
        PlanCompiler(pipeline.schedule, grid),
        noise.prediction_type,
        noise.clipping,
        card,
        unet.config.added_inputs,
        found.adapt_unet(selection, unet),
    )
    return LoadedModel(model, selection.fallback, found.problems)


def _pipeline_facts(pipeline: TextPipeline) -> dict[str, Any]:
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


def _said_by(card: CardFile) -> dict[str, Any]:
    """What the folder's card says for people."""
    return {key: getattr(card, key) for key in ("description", "data", "license", "credits")}


def sampler_facts(schedule: NoiseSchedule, grid: Grid) -> dict[str, Any]:
    """What the card says about the samplers, which are the same for every model, and their grid."""
    spacing, ratios = grid.ratio_spacing, noise_ratios(schedule)
    taking_spacing = [name for name, sampler in SAMPLERS.items() if sampler.takes_spacing]
    visited = {name: sampler.visited_timesteps(schedule, grid) for name, sampler in SAMPLERS.items()}
    return {
        "samplers": list(SAMPLERS),
        "sampler_descriptions": DESCRIPTIONS,
        "eta_samplers": [name for name, sampler in SAMPLERS.items() if sampler.takes_eta],
        "spacings": [*SPACINGS, *RATIO_SPACINGS],
        "spacing_samplers": taking_spacing,
        "karras_samplers": taking_spacing,
        "solver_samplers": [name for name, sampler in SAMPLERS.items() if sampler.levels is solver_levels],
        "stages": {name: sampler.stages for name, sampler in SAMPLERS.items() if sampler.stages > 1},
        "extra_evaluations": {name: sampler.extra for name, sampler in SAMPLERS.items() if sampler.extra},
        "grid": CardGrid(
            spacing=grid.spacing,
            steps_offset=grid.steps_offset,
            karras=spacing is not None and spacing.name == "karras",
            ratio_spacing=spacing.name if spacing is not None else None,
            sigma_min=float(ratios[0]),
            sigma_max=float(ratios[-1]),
            ratios=_sketch(ratios),
            visited={name: count for name, count in visited.items() if count < schedule.timesteps},
        ),
    }


def _sketch(ratios: Float64) -> list[float]:
    """Some of the noise levels, at equal distances, in four digits."""
    times = np.linspace(0, len(ratios) - 1, min(SKETCHED_RATIOS, len(ratios)))
    sketched = np.exp(np.interp(times, np.arange(len(ratios)), np.log(ratios)))
    return [float(f"{ratio:.4g}") for ratio in sketched]


def build_prompt_encoder(pipeline: TextPipeline, device: str, loras: FoundAdapters | None = None) -> PromptEncoder:
    """The tokenizers and text encoders of a pipeline, with adapters."""
    encoders = []
    for k, (tokenizer, encoder) in enumerate(zip(pipeline.tokenizers, pipeline.text_encoders, strict=True)):
        own = encoder.eval().requires_grad_(False).to(device)
        packed = pack_text_encoder(own)
        network, whole_batches = (own, False) if isinstance(packed, str) else (packed, True)
        adapted = loras.adapt_encoder(k, network, own, packed=whole_batches) if loras is not None else None
        encoders.append(
            ChunkEncoder(tokenizer, network, penultimate=pipeline.is_xl, adapted=adapted, whole_batches=whole_batches)
        )
    return PromptEncoder(encoders, zero_without_negative=pipeline.zero_without_negative)


def _build_pictures(pipeline: TextPipeline, device: str) -> LatentPictures:
    """The decoder of a pipeline; it loses its weights to packed kernels if there are some."""
    autoencoder = pipeline.autoencoder.eval().requires_grad_(False).to(device)
    latent_rgb = pipeline.card.latent_rgb or published_rgb(is_xl=pipeline.is_xl)
    reason = pack_decoder(autoencoder)
    if reason is not None:
        log.info("pictures are decoded one by one: %s", reason)
    return LatentPictures(autoencoder, latent_rgb, whole_batches=reason is None)
