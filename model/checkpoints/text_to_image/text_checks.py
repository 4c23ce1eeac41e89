"""Check the configs of a text pipeline against each other, before a weight is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from denoised.model.checkpoints.reading import GIB
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.networks.text_encoder.text_encoder_config import TextEncoderConfig
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.text.tokenizer import TextTokenizer

MAX_SIDE = 2048  # pixels of the model's own size
OTHER_INPUTS = {
    5: "depth maps next to the latents",
    7: "a small picture next to the latents, to enlarge it",
    8: "a picture next to the latents, to edit it",
    9: "a mask and a picture next to the latents, for inpainting",
}
REFINER_SIZE_IDS = 5  # with an aesthetic score instead of the target size


def check_networks(
    path: Path, unet: TextUNetConfig, vae: AutoencoderConfig, texts: Sequence[TextEncoderConfig], *, is_xl: bool
) -> None:
    """Refuse a U-Net that needs other inputs than its pipeline makes.

    path: of the U-Net's config.

    Raises:
        CheckpointError: naming the key and the value.
    """
    _check_channels(path, unet, vae)
    for key in ("class_embed_type", "num_class_embeds"):
        if (value := getattr(unet, key)) is not None:
            raise CheckpointError(f"{path}: {key} = {abbreviate(value)} is not supported here (supported: null)")
    expected = "text_time" if is_xl else None
    if unet.addition_embed_type != expected:
        raise CheckpointError(
            f"{path}: addition_embed_type = {unet.addition_embed_type!r} is not that of the pipeline's class "
            f"({expected!r})"
        )
    if is_xl:
        _check_pooled(path, unet, texts[-1])
    dims = unet.cross_attention_dim if isinstance(unet.cross_attention_dim, tuple) else (unet.cross_attention_dim,)
    width = sum(text.hidden_size for text in texts)
    if any(dim != width for dim in dims):
        raise CheckpointError(
            f"{path}: cross_attention_dim = {abbreviate(unet.cross_attention_dim)}, but the text encoder"
            f"{'s have' if len(texts) > 1 else ' has'} hidden_size = {width}{' in all' if len(texts) > 1 else ''}"
        )


def _check_channels(path: Path, unet: TextUNetConfig, vae: AutoencoderConfig) -> None:
    channels = vae.latent_channels
    served = (channels, 2 * channels, 2 * channels + 1)  # latents, and a picture, and a mask and a picture
    if unet.in_channels not in served:
        content = OTHER_INPUTS.get(unet.in_channels, "other inputs than latents")
        raise CheckpointError(
            f"{path}: in_channels = {unet.in_channels}: the network takes {content}, which no request carries "
            f"(supported: {', '.join(map(str, served))})"
        )
    if unet.out_channels != channels:
        raise CheckpointError(f"{path}: out_channels = {unet.out_channels} is not {channels}, the latent channels")
    if vae.out_channels not in (1, 3):
        raise CheckpointError(f"{path}: the autoencoder's out_channels = {vae.out_channels} cannot be shown")


def _check_pooled(path: Path, unet: TextUNetConfig, text: TextEncoderConfig) -> None:
    """The added vector consists of the pooled text and the features of the size ids."""
    total, features = unet.projection_class_embeddings_input_dim, unet.addition_time_embed_dim or 0
    if unet.pooled_dim == text.projection_dim:
        return
    if total == text.projection_dim + REFINER_SIZE_IDS * features:
        raise CheckpointError(
            f"{path}: projection_class_embeddings_input_dim = {total} leaves room for an aesthetic score: this is the "
            "refiner of Stable Diffusion XL, which finishes the latents of another model, and is not served"
        )
    raise CheckpointError(
        f"{path}: projection_class_embeddings_input_dim = {total} is not the {text.projection_dim} channels of the "
        f"pooled text and {features} features for each of 6 size ids"
    )


def read_tokenizers(folders: Sequence[Path], texts: Sequence[TextEncoderConfig]) -> tuple[TextTokenizer, ...]:
    """Read the tokenizers of the text encoders, and check that they fit together.

    Raises:
        CheckpointError: naming the folder and the limit.
    """
    found = tuple(_read_tokenizer(folder, config) for folder, config in zip(folders, texts, strict=True))
    if len({each.length for each in found}) > 1:
        raise CheckpointError(f"{folders[0].parent}: the tokenizers' model_max_length differ")
    return found


def _read_tokenizer(folder: Path, config: TextEncoderConfig) -> TextTokenizer:
    tokenizer = TextTokenizer.from_folder(folder)
    if tokenizer.vocabulary_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: has {tokenizer.vocabulary_size} tokens, but the text encoder has {config.vocab_size}"
        )
    if tokenizer.length > config.max_position_embeddings:
        raise CheckpointError(
            f"{folder}: model_max_length = {tokenizer.length}, but the text encoder reads up to "
            f"{config.max_position_embeddings} tokens"
        )
    return tokenizer


def check_memory(folder: Path, networks: Iterable[nn.Module]) -> None:
    """Refuse networks whose weights do not fit into this machine's memory.

    Raises:
        CheckpointError: naming both sizes.
    """
    needed = 4 * sum(tensor.numel() for network in networks for tensor in network.state_dict().values())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise CheckpointError(
            f"{folder}: its weights need {needed / GIB:.1f} GiB; this machine has {memory / GIB:.1f} GiB of memory"
        )


def check_image_size(path: Path, unet: TextUNetConfig, vae: AutoencoderConfig) -> tuple[int, int]:
    """(height, width) in pixels, from the U-Net's `sample_size` in latents.

    Raises:
        CheckpointError: for a size that the network cannot make.
    """
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
