"""Build a served model from a folder; `model.checkpoints.reading` reads and checks the files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from denoised.model.backends.numerics import Precision, with_kernels
from denoised.model.backends.packed_decoder import decodes_fixed_batches, pack_decoder
from denoised.model.backends.precision import DTYPES
from denoised.model.backends.selection import select_backend
from denoised.model.backends.text_encoder_selection import select_text_encoder
from denoised.model.backends.text_selection import select_text_backend
from denoised.model.checkpoints.folders import model_name
from denoised.model.checkpoints.reading import read_checkpoint
from denoised.model.checkpoints.text_to_image.pipelines import is_text_pipeline, unused_parts
from denoised.model.checkpoints.text_to_image.text_pipeline import TextPipeline, read_text_pipeline
from denoised.model.networks.evaluation_memory import RESIDUAL_MAPS, TRANSFORMER_MAPS, EvaluationMemory
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.serving.card import ModelCard
from denoised.model.serving.card_facts import network_facts, pipeline_facts, said_by, sampler_facts
from denoised.model.serving.control_library import ControlLibrary, select_control_nets
from denoised.model.serving.latent_model import LatentModel
from denoised.model.serving.latent_pictures import FIXED_BATCH, LatentPictures, published_rgb
from denoised.model.serving.lora_adapters import FoundAdapters, find_adapters
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.plan_compiler import PlanCompiler
from denoised.model.serving.prompt_encoder import ChunkEncoder, PromptEncoder

log = logging.getLogger("denoised.worker")

ZOO = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be served.

    Attributes:
        model: On the fastest backend of its device; its card names the numerics.
        fallback: Why a faster backend is not available on this machine; None if this is the fastest.
        lora_problems: Why some adapters are left out.
        control_problems: Why some ControlNets are left out.
        refused_precision: Why it, or a part of it, is served in float32 although another precision was asked for.
    """

    model: PixelModel | LatentModel
    fallback: str | None
    lora_problems: Sequence[str] = ()
    refused_precision: str | None = None
    control_problems: Sequence[str] = ()


def load_for_serving(
    folder: Path | str,
    *,
    device: str = "cpu",
    name: str | None = None,
    max_images: int = 16,
    precision: Precision = "float32",
    loras: Path | None = None,
    controls: Path | None = None,
) -> LoadedModel:
    """Load a model on the fastest backend that gives an image the same bits at every batch size.

    loras: a folder of low-rank adapters; controls: a folder of ControlNets. Models of pixels take none.
    precision: of U-Net and text encoders, one that the device has (`model.backends.precision`); decoders have float32.

    Raises:
        CheckpointError: see `load_model`; and for a pipeline that is not served, by its name.
    """
    if is_text_pipeline(Path(folder)):
        if unused := unused_parts(Path(folder)):
            log.info("%s: not run: %s", folder, ", ".join(unused))
        return load_text_for_serving(
            folder,
            device=device,
            name=name,
            max_images=max_images,
            loras=loras,
            controls=controls,
            precision=precision,
        )
    model = load_model(folder, device=device, name=name, max_images=max_images)
    selection = select_backend(model.unet, model.shape, model.card.timesteps, device, precision)
    model.backend = selection.backend
    model.card = model.card.model_copy(update={"numerics": selection.numerics})
    refused = (
        None
        if precision == "float32" or device.startswith("cuda")
        else f"{device} has no {precision} for models of pixels"
    )
    return LoadedModel(model, selection.fallback, refused_precision=refused)


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
    levels = tuple(checkpoint.card.consistency_levels)
    grid = replace(noise.grid(unet.config), consistency_levels=levels)
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
        network=network_facts(unet, height, width),
        distilled=bool(levels),
        **said_by(checkpoint.card),
        **sampler_facts(checkpoint.schedule, grid, checkpoint.card.learned_levels),
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
    folder: Path | str,
    *,
    device: str,
    name: str | None,
    max_images: int,
    loras: Path | None = None,
    controls: Path | None = None,
    precision: Precision = "float32",
) -> LoadedModel:
    """`load_text_model` with adapters and ControlNets, in a precision, and with the reasons for what is not as fast or
    as asked for."""
    folder = Path(folder)
    pipeline = read_text_pipeline(folder)
    noise, grid = pipeline.noise, pipeline.noise.grid(pipeline.unet.config)
    unet = pipeline.unet.eval().requires_grad_(False).to(device)
    found = find_adapters(loras, unet, pipeline.text_encoders)
    vae = pipeline.autoencoder.config
    latents = [side // vae.downscale for side in pipeline.image_size]
    network = network_facts(unet, *latents)  # before packing, which takes the weights
    nets = select_control_nets(controls, pipeline.unet.config, vae.latent_channels, vae.downscale)
    adapted = bool(found.listed or nets.fitting)
    # Before the prompt encoder and the decoder: all three are packed, and the U-Net is the largest.
    selection = select_text_backend(unet, pipeline.schedule.timesteps, device, adapted=adapted, precision=precision)
    prompts = build_prompt_encoder(pipeline, device, found, selection.precision)
    pictures = _build_pictures(pipeline, device)
    card = ModelCard(
        name=name or model_name(folder),
        max_clip_skip=max(0, prompts.max_clip_skip),
        loras=found.listed,
        controls=nets.listed,
        network=network,
        max_images=max_images,
        numerics=with_kernels(selection.numerics, text=prompts.kernels, decoder=pictures.kernels),
        **pipeline_facts(pipeline),
        **said_by(pipeline.card),
        **sampler_facts(pipeline.schedule, grid, pipeline.card.learned_levels),
    )
    model = LatentModel(
        selection.backend,
        torch.device(device),
        prompts,
        pictures,
        PlanCompiler(pipeline.schedule, grid, card.grid.learned),
        noise.prediction_type,
        noise.clipping,
        card,
        _evaluation_memory(unet.config, selection.precision, controlled=bool(nets.fitting)),
        unet.config.added_inputs,
        found.adapt_unet(selection, unet) if adapted else None,
        ControlLibrary(nets.fitting, torch.device(device), selection.precision),
    )
    return LoadedModel(model, selection.fallback, found.problems, selection.refused or prompts.refused, nets.problems)


def _evaluation_memory(config: TextUNetConfig, precision: Precision, *, controlled: bool) -> EvaluationMemory:
    attends = ["CrossAttn" in kind for kind in config.down_block_types]
    maps = [TRANSFORMER_MAPS if each else RESIDUAL_MAPS for each in attends]
    # A ControlNet's residuals are as large as the skip tensors of the U-Net, and exist next to them.
    layers = [config.layers(level) * (2 if controlled else 1) for level in range(config.levels)]
    return EvaluationMemory(config.block_out_channels, layers, maps, DTYPES[precision].itemsize)


def build_prompt_encoder(
    pipeline: TextPipeline, device: str, loras: FoundAdapters | None = None, precision: Precision = "float32"
) -> PromptEncoder:
    """The tokenizers and text encoders of a pipeline, with adapters."""
    encoders = []
    for k, (tokenizer, encoder) in enumerate(zip(pipeline.tokenizers, pipeline.text_encoders, strict=True)):
        own = encoder.eval().requires_grad_(False).to(device)
        selection = select_text_encoder(own, precision)
        adapted = loras.adapt_encoder(k, selection, own) if loras is not None else None
        encoders.append(ChunkEncoder(tokenizer, selection, penultimate=pipeline.is_xl, adapted=adapted))
    return PromptEncoder(encoders, zero_without_negative=pipeline.zero_without_negative)


def _build_pictures(pipeline: TextPipeline, device: str) -> LatentPictures:
    """The decoder of a pipeline; it loses its weights to packed kernels if there are some."""
    autoencoder = pipeline.autoencoder.eval().requires_grad_(False).to(device)
    latent_rgb = pipeline.card.latent_rgb or published_rgb(is_xl=pipeline.is_xl)
    reason = pack_decoder(autoencoder)
    in_fixed_batches = reason is not None and decodes_fixed_batches(autoencoder, FIXED_BATCH)
    if reason is not None and not in_fixed_batches:
        log.info("pictures are decoded one by one: %s", reason)
    return LatentPictures(autoencoder, latent_rgb, whole_batches=reason is None, in_fixed_batches=in_fixed_batches)
