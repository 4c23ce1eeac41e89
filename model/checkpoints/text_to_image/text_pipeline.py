"""Read a text-to-image folder of diffusers: its networks with their weights, and its noise schedule.

    model_index.json                            names the class and the parts
    unet/, vae/                                 config.json, diffusion_pytorch_model.safetensors
    text_encoder/, text_encoder_2/              config.json, model.safetensors; the second in SDXL only
    tokenizer/, tokenizer_2/                    see `model.text.tokenizer`
    scheduler/scheduler_config.json
    model_card.json                             optional

Weights may be in float16 or bfloat16; the networks are in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.card_file import CARD_FILE, CardFile, Defaults, read_card_file
from denoised.model.checkpoints.digest import learned_settings, pipeline_digest
from denoised.model.checkpoints.folders import MODEL_INDEX, SCHEDULER_CONFIG
from denoised.model.checkpoints.noise_settings import NoiseSettings
from denoised.model.checkpoints.text_to_image.pipelines import encoder_parts, pipeline_class, tokenizer_parts
from denoised.model.checkpoints.text_to_image.text_checks import (
    check_image_size,
    check_memory,
    check_networks,
    read_tokenizers,
)
from denoised.model.checkpoints.text_to_image.text_defaults import is_distilled, resolve_text_defaults
from denoised.model.checkpoints.weight_files import ENCODER, find_weights
from denoised.model.checkpoints.weights import read_weights
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.networks.text_encoder.text_encoder import TextEncoder, text_encoder_tensor_name
from denoised.model.networks.text_encoder.text_encoder_config import TextEncoderConfig
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.text.tokenizer import TOKENIZER_FILES, TextTokenizer

# What the U-Net of Stable Diffusion 1 and 2 attends to is after the final norm; what that of SDXL does is not.
XL_PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline")

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class TextPipeline:
    """The networks of a folder, with their weights, on the CPU.

    Attributes:
        unet: on latents.
        autoencoder: between latents and pixels.
        text_encoders: of the prompts; one, or two in SDXL.
        tokenizers: of the prompts, in the order of the encoders.
        is_xl: whether the U-Net attends to penultimate states, as SDXL's does.
        zero_without_negative: without a negative prompt, guidance leads away from zeros, not from the empty prompt.
        noise: the settings of the scheduler's file.
        schedule: the noise levels of training, T timesteps.
        digest: see `model.checkpoints.digest`.
        image_size: (height, width) in pixels that the U-Net was trained on.
        default: the sampler, steps and guidance of a request that names none.
        distilled: whether it was trained for a few steps without guidance.
        card: the folder's own card.
    """

    unet: TextUNet
    autoencoder: Autoencoder
    text_encoders: tuple[TextEncoder, ...]
    tokenizers: tuple[TextTokenizer, ...]
    is_xl: bool
    zero_without_negative: bool
    noise: NoiseSettings
    schedule: NoiseSchedule
    digest: str
    image_size: tuple[int, int]
    default: Defaults
    distilled: bool
    card: CardFile


def read_text_pipeline(folder: Path) -> TextPipeline:
    """Read a pipeline whose parts `model.checkpoints.text_to_image.pipelines` has checked.

    Raises:
        CheckpointError: for anything missing, not understood or contradictory; one line that names the file, the key
            and the cause.
    """
    kind = pipeline_class(folder)
    encoder_names = encoder_parts(kind)
    paths = {name: folder / name / "config.json" for name in ("unet", "vae", *encoder_names)}
    unet_config = _read_config(paths["unet"], "UNet2DConditionModel", TextUNetConfig.from_dict)
    vae_config = _as_read_by(kind, _read_config(paths["vae"], "AutoencoderKL", AutoencoderConfig.from_dict))
    text_configs = [_read_config(paths[name], None, TextEncoderConfig.from_dict) for name in encoder_names]
    check_networks(paths["unet"], unet_config, vae_config, text_configs, is_xl=kind in XL_PIPELINES)
    image_size = check_image_size(paths["unet"], unet_config, vae_config)
    noise, card = NoiseSettings.read(folder / SCHEDULER_CONFIG), read_card_file(folder)
    noise.check(unet_config)
    schedule, zero_without_negative = noise.schedule, _zero_without_negative(folder, kind)
    default = resolve_text_defaults(folder, card, noise, schedule, kind, unet_config)
    _check_latent_rgb(folder, card, vae_config)
    tokenizer_folders = [folder / name for name in tokenizer_parts(kind)]
    tokenizers = read_tokenizers(tokenizer_folders, text_configs)
    networks = _build_networks(paths, unet_config, vae_config, dict(zip(encoder_names, text_configs, strict=True)))
    check_memory(folder, networks.values())
    weights = _load_weights(folder, networks)
    configs = [*paths.values(), folder / SCHEDULER_CONFIG]
    settings = {"zero_without_negative": True} if zero_without_negative else {}
    settings |= learned_settings(card.learned_levels)
    unet, autoencoder = networks["unet"], networks["vae"]
    assert isinstance(unet, TextUNet)
    assert isinstance(autoencoder, Autoencoder)
    return TextPipeline(
        unet=unet,
        autoencoder=autoencoder,
        text_encoders=tuple(each for each in networks.values() if isinstance(each, TextEncoder)),
        tokenizers=tokenizers,
        is_xl=kind in XL_PIPELINES,
        zero_without_negative=zero_without_negative,
        noise=noise,
        schedule=schedule,
        digest=_digest(configs, tokenizer_folders, weights, settings),
        image_size=image_size,
        default=default,
        distilled=is_distilled(noise) or unet_config.time_cond_proj_dim is not None,
        card=card,
    )


def _read_config(path: Path, kind: str | None, parse: Callable[[Mapping[str, Any]], Config]) -> Config:
    """kind: the class that the file has to name; None if it need not name one."""
    raw = read_json(path)
    if kind is not None and raw.get("_class_name", kind) != kind:
        name = abbreviate(raw["_class_name"])
        raise CheckpointError(f"{path}: _class_name = {name} is not supported (supported: {kind!r})")
    try:
        return parse(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _as_read_by(kind: str, vae: AutoencoderConfig) -> AutoencoderConfig:
    """The config without what diffusers' pipeline of this kind ignores: all of them divide latents by `scaling_factor`,
    that of XL also reads `latents_mean` and `latents_std`, and none reads `shift_factor`."""
    if kind in XL_PIPELINES:
        return replace(vae, shift_factor=None)
    return replace(vae, shift_factor=None, latents_mean=None, latents_std=None)


def _zero_without_negative(folder: Path, kind: str) -> bool:
    """`force_zeros_for_empty_prompt`, which only SDXL's pipeline has; true by default, as in diffusers."""
    value = read_json(folder / MODEL_INDEX).get("force_zeros_for_empty_prompt", True)
    if not isinstance(value, bool):
        key = f"force_zeros_for_empty_prompt = {abbreviate(value)}"
        raise CheckpointError(f"{folder / MODEL_INDEX}: {key} is neither true nor false")
    return value and kind in XL_PIPELINES


def _build_networks(
    paths: Mapping[str, Path], unet: TextUNetConfig, vae: AutoencoderConfig, texts: Mapping[str, TextEncoderConfig]
) -> dict[str, nn.Module]:
    """The networks by part, on the meta device. SDXL's second encoder is the one with a projection."""
    networks: dict[str, nn.Module] = {
        "unet": _build(paths["unet"], lambda: TextUNet(unet)),
        "vae": _build(paths["vae"], lambda: Autoencoder(vae)),
    }
    for position, (part, config) in enumerate(texts.items()):
        networks[part] = _build(paths[part], lambda c=config, p=position > 0: TextEncoder(c, projected=p))  # type: ignore[misc]
    return networks


def _build(path: Path, build: Callable[[], Network]) -> Network:
    """Build a network on the meta device: no weights are drawn."""
    try:
        with torch.device("meta"):
            return build()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _load_weights(folder: Path, networks: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """Read the weights of each part, and give them to its network."""
    weights = {}
    for part, network in networks.items():
        if isinstance(network, TextEncoder):
            source = find_weights(folder / part, ENCODER)
            weights[part] = read_weights(source, network.state_dict(), text_encoder_tensor_name)
        else:
            weights[part] = read_weights(find_weights(folder / part), network.state_dict())
        network.load_state_dict(weights[part], assign=True)
    return weights


def _check_latent_rgb(folder: Path, card: CardFile, vae: AutoencoderConfig) -> None:
    rows, channels = len(card.latent_rgb), vae.latent_channels
    if rows not in (0, channels, channels + 1):
        raise CheckpointError(
            f"{folder / CARD_FILE}: latent_rgb has {rows} rows (allowed: {channels} or {channels + 1})"
        )


def _digest(
    configs: list[Path],
    tokenizers: list[Path],
    weights: Mapping[str, Mapping[str, Tensor]],
    settings: Mapping[str, Any],
) -> str:
    files = [folder / name for folder in tokenizers for name in TOKENIZER_FILES if (folder / name).exists()]
    named = {f"{part}.{name}": tensor for part, each in weights.items() for name, tensor in each.items()}
    return pipeline_digest([*configs, *files], named, settings)
