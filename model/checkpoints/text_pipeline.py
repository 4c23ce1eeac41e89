"""Read a folder of diffusers' `StableDiffusionPipeline`: its networks with their weights, and its noise schedule.

    model_index.json                            names the parts
    unet/, vae/                                 config.json, diffusion_pytorch_model.safetensors
    text_encoder/                               config.json, model.safetensors
    tokenizer/                                  see `model.text.tokenizer`
    scheduler/scheduler_config.json
    model_card.json                             optional

Weights may be in float16 or bfloat16; the networks are in float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from denoised.model.checkpoints.bounded_files import read_json
from denoised.model.checkpoints.card_file import CARD_FILE, CardFile, Defaults, read_card_file
from denoised.model.checkpoints.digest import pipeline_digest
from denoised.model.checkpoints.folders import SCHEDULER_CONFIG
from denoised.model.checkpoints.noise_settings import NoiseSettings
from denoised.model.checkpoints.prompt_guide import PromptGuide
from denoised.model.checkpoints.reading import GIB, resolve_defaults
from denoised.model.checkpoints.weight_files import ENCODER, find_weights
from denoised.model.checkpoints.weights import read_weights
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.autoencoder import Autoencoder
from denoised.model.networks.autoencoder_config import AutoencoderConfig
from denoised.model.networks.text_encoder import TextEncoder, text_encoder_tensor_name
from denoised.model.networks.text_encoder_config import TextEncoderConfig
from denoised.model.networks.text_unet import TextUNet
from denoised.model.networks.text_unet_config import TextUNetConfig

GUIDANCE_SCALE = 7.5  # the default of diffusers' pipeline
MAX_SIDE = 2048  # pixels of the model's own size
OTHER_INPUTS = {
    5: "depth maps beside the latents",
    7: "a small picture beside the latents, to enlarge it",
    8: "a picture beside the latents, to edit it",
    9: "a mask and a picture beside the latents, for inpainting",
}

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class TextPipeline:
    """The networks of a folder, with their weights, on the CPU.

    Attributes:
        unet: on latents.
        autoencoder: between latents and pixels.
        text_encoder: of the prompts.
        tokenizer: the folder of its tokenizer.
        noise: the settings of the scheduler's file.
        schedule: the noise levels of training, T timesteps.
        digest: see `model.checkpoints.digest`.
        image_size: (height, width) in pixels that the U-Net was trained on.
        default: the sampler, steps and guidance of a request that names none.
        latent_rgb, prompt_guide: see `CardFile`.
    """

    unet: TextUNet
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    tokenizer: Path
    noise: NoiseSettings
    schedule: NoiseSchedule
    digest: str
    image_size: tuple[int, int]
    default: Defaults
    latent_rgb: list[tuple[float, float, float]]
    prompt_guide: PromptGuide


def read_text_pipeline(folder: Path) -> TextPipeline:
    """Read a pipeline whose parts `model.checkpoints.pipelines` has checked.

    Raises:
        CheckpointError: for anything missing, not understood or contradictory; one line that names the file, the key
            and the cause.
    """
    paths = {name: folder / name / "config.json" for name in ("unet", "vae", "text_encoder")}
    unet_config = _read_config(paths["unet"], "UNet2DConditionModel", TextUNetConfig.from_dict)
    vae_config = _read_config(paths["vae"], "AutoencoderKL", AutoencoderConfig.from_dict)
    text_config = _read_config(paths["text_encoder"], None, TextEncoderConfig.from_dict)
    _check_unet(paths["unet"], unet_config, vae_config, text_config)
    noise, card = NoiseSettings.read(folder / SCHEDULER_CONFIG), read_card_file(folder)
    schedule = noise.schedule
    unet = _build(paths["unet"], lambda: TextUNet(unet_config))
    autoencoder = _build(paths["vae"], lambda: Autoencoder(vae_config))
    encoder = _build(paths["text_encoder"], lambda: TextEncoder(text_config, projected=False))
    _check_memory(folder, unet, autoencoder, encoder)
    weights = {
        "unet": read_weights(find_weights(folder / "unet"), unet.state_dict()),
        "vae": read_weights(find_weights(folder / "vae"), autoencoder.state_dict()),
        "text_encoder": read_weights(
            find_weights(folder / "text_encoder", ENCODER), encoder.state_dict(), text_encoder_tensor_name
        ),
    }
    for part, network in (("unet", unet), ("vae", autoencoder), ("text_encoder", encoder)):
        network.load_state_dict(weights[part], assign=True)
    return TextPipeline(
        unet=unet,
        autoencoder=autoencoder,
        text_encoder=encoder,
        tokenizer=folder / "tokenizer",
        noise=noise,
        schedule=schedule,
        digest=_digest(folder, [*paths.values(), folder / SCHEDULER_CONFIG], weights),
        image_size=_image_size(paths["unet"], unet_config, vae_config),
        default=_defaults(folder, card, noise.sampler, schedule),
        latent_rgb=_latent_rgb(folder, card, vae_config),
        prompt_guide=card.prompt_guide,
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


def _build(path: Path, build: Callable[[], Network]) -> Network:
    """Build a network on the meta device: no weights are drawn."""
    try:
        with torch.device("meta"):
            return build()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_unet(path: Path, unet: TextUNetConfig, vae: AutoencoderConfig, text: TextEncoderConfig) -> None:
    """Refuse a U-Net that needs more than latents and the hidden states of one text encoder."""
    channels = vae.latent_channels
    if unet.in_channels != channels:
        content = OTHER_INPUTS.get(unet.in_channels, "other inputs than latents")
        raise CheckpointError(
            f"{path}: in_channels = {unet.in_channels}: the network takes {content}, which no request carries "
            f"(supported: the {channels} latent channels)"
        )
    if unet.out_channels != channels:
        raise CheckpointError(f"{path}: out_channels = {unet.out_channels} is not in_channels = {channels}")
    for key in ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim"):
        if (value := getattr(unet, key)) is not None:
            raise CheckpointError(f"{path}: {key} = {abbreviate(value)} is not supported here (supported: null)")
    dims = unet.cross_attention_dim if isinstance(unet.cross_attention_dim, tuple) else (unet.cross_attention_dim,)
    if any(dim != text.hidden_size for dim in dims):
        raise CheckpointError(
            f"{path}: cross_attention_dim = {abbreviate(unet.cross_attention_dim)}, but the text encoder has "
            f"hidden_size = {text.hidden_size}"
        )
    if vae.out_channels not in (1, 3):
        raise CheckpointError(f"{path}: the autoencoder's out_channels = {vae.out_channels} cannot be shown")


def _check_memory(folder: Path, *networks: nn.Module) -> None:
    needed = 4 * sum(tensor.numel() for network in networks for tensor in network.state_dict().values())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise CheckpointError(
            f"{folder}: its weights need {needed / GIB:.1f} GiB; this machine has {memory / GIB:.1f} GiB of memory"
        )


def _image_size(path: Path, unet: TextUNetConfig, vae: AutoencoderConfig) -> tuple[int, int]:
    """(height, width) in pixels, from the U-Net's `sample_size` in latents."""
    size = unet.sample_size
    if size is None:
        raise CheckpointError(f"{path}: sample_size is missing")
    height, width = size if isinstance(size, tuple) else (size, size)
    for side in (height, width):
        if side < 1 or side % unet.downscale or side * vae.downscale > MAX_SIDE:
            raise CheckpointError(
                f"{path}: sample_size = {abbreviate(side)} is not a positive multiple of {unet.downscale} up to "
                f"{MAX_SIDE // vae.downscale}"
            )
    return height * vae.downscale, width * vae.downscale


def _defaults(folder: Path, card: CardFile, sampler: str | None, schedule: NoiseSchedule) -> Defaults:
    """The card's defaults; without them, those of diffusers' pipeline."""
    default = resolve_defaults(folder, card, sampler, schedule, unconditional=True)
    if "guidance_scale" in card.default.model_fields_set:
        return default
    return default.model_copy(update={"guidance_scale": GUIDANCE_SCALE})


def _latent_rgb(folder: Path, card: CardFile, vae: AutoencoderConfig) -> list[tuple[float, float, float]]:
    rows, channels = len(card.latent_rgb), vae.latent_channels
    if rows not in (0, channels, channels + 1):
        raise CheckpointError(
            f"{folder / CARD_FILE}: latent_rgb has {rows} rows (allowed: {channels} or {channels + 1})"
        )
    return card.latent_rgb


def _digest(folder: Path, configs: list[Path], weights: Mapping[str, Mapping[str, Tensor]]) -> str:
    tokenizer = sorted(path for path in (folder / "tokenizer").iterdir() if path.suffix in (".json", ".txt"))
    named = {f"{part}.{name}": tensor for part, each in weights.items() for name, tensor in each.items()}
    return pipeline_digest([*configs, *tokenizer], named)
