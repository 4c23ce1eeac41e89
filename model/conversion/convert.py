"""Turn a checkpoint in a single file into a folder of diffusers' layout."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denoised.model.checkpoints.folders import MODEL_INDEX, SCHEDULER_CONFIG
from denoised.model.checkpoints.text_to_image.pipeline_writing import (
    TEXT_ENCODER_WEIGHTS,
    save_json,
    save_network,
    save_weights,
)
from denoised.model.checkpoints.writing import DIFFUSERS_VERSION
from denoised.model.conversion.original_autoencoder import autoencoder_sources, read_autoencoder_shapes
from denoised.model.conversion.original_text_encoders import OriginalTextEncoder, read_text_encoders
from denoised.model.conversion.original_unet import PIPELINES, read_unet_shapes, unet_sources
from denoised.model.conversion.scheduler_content import (
    Prediction,
    PredictionChoice,
    choose_prediction,
    scheduler_content,
    trained_pixels,
)
from denoised.model.conversion.single_file import AUTOENCODER, UNET, Family, SingleFile
from denoised.model.conversion.tensor_source import Sources, check_sources, read_sources, used_names
from denoised.model.conversion.tokenizer_files import Vocabulary, check_vocabulary
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

# Tensors of the networks' prefixes that are not weights, or belong to what is not run.
UNUSED = re.compile(
    r".*\.position_ids|.*\.logit_scale|.*\.attn_mask|.*\.visual\..*|first_stage_model\.loss\..*"
    r"|cond_stage_model\.model\.(text_projection|transformer\.resblocks\.\d+\..*)"
)


@dataclass(frozen=True)
class Network:
    """A network of a file, checked but not read.

    Attributes:
        sources: of its tensors.
        expected: its state dict, on the meta device.
    """

    sources: Sources
    expected: dict[str, Tensor]


@dataclass(frozen=True)
class Conversion:
    """A file whose networks are known and fit.

    Attributes:
        choice: what the U-Net predicts.
        unused: how many tensors are left out.
    """

    file: SingleFile
    choice: PredictionChoice
    unet_config: TextUNetConfig
    unet: Network
    autoencoder_config: AutoencoderConfig
    autoencoder: Network
    encoders: list[tuple[OriginalTextEncoder, Network]]
    unused: int

    def describe(self) -> list[str]:
        """What people should know before it is written."""
        count = sum(tensor.numel() for tensor in self.unet.expected.values())
        lines = [
            f"{self.file.path}: {self.file.family}, a U-Net of {count / 1e6:,.0f} million weights",
            f"prediction: {self.choice.prediction} ({self.choice.reason})",
        ]
        if self.unused:
            lines.append(f"left out: {self.unused} tensors that serving does not read, such as averages for training")
        return lines


def plan_conversion(file: SingleFile, prediction: Prediction | None) -> Conversion:
    """Compare the names and shapes of a file with the networks'. Reads no weights.

    Raises:
        CheckpointError: in one line that names the file and the cause.
    """
    choice = choose_prediction(file, prediction)
    pixels = trained_pixels(file.family, choice.prediction)
    autoencoder_config = read_autoencoder_shapes(file, pixels)
    unet_config = read_unet_shapes(file, pixels // autoencoder_config.downscale)
    unet = _network(file, lambda: TextUNet(unet_config), lambda names: unet_sources(names, unet_config))
    autoencoder = _network(
        file,
        lambda: Autoencoder(autoencoder_config),
        lambda names: autoencoder_sources(names, autoencoder_config),
    )
    encoders = [(each, _encoder(file, each)) for each in read_text_encoders(file)]
    networks = [unet, autoencoder, *(network for _, network in encoders)]
    unused = _check_unused(file, used_names(network.sources for network in networks))
    return Conversion(file, choice, unet_config, unet, autoencoder_config, autoencoder, encoders, unused)


def write_conversion(conversion: Conversion, folder: Path, tokenizer: Path) -> None:
    """Write the folder; it appears complete or not at all.

    tokenizer: a folder with CLIP's vocabulary.

    Raises:
        CheckpointError: if the folder exists, the vocabulary does not fit, or the disk has no room.
    """
    check_target(folder)
    vocabulary = Vocabulary.read(tokenizer)
    for encoder, _ in conversion.encoders:
        check_vocabulary(tokenizer, vocabulary, encoder.config.vocab_size)
    size = conversion.file.path.stat().st_size
    free = shutil.disk_usage(_existing(folder)).free
    if free < size:
        raise CheckpointError(f"{folder}: {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
    with _complete_or_not_at_all(folder) as temporary:
        _write(conversion, temporary, vocabulary)


def check_target(folder: Path) -> None:
    """Refuse to write over what exists.

    Raises:
        CheckpointError: if the folder exists.
    """
    if folder.exists() or folder.is_symlink():
        raise CheckpointError(f"{folder}: exists already; name a new folder")


def _network(file: SingleFile, build: Callable[[], nn.Module], find: Callable[[list[str]], Sources]) -> Network:
    with torch.device("meta"):
        expected = build().state_dict()
    network = Network(find(list(expected)), expected)
    check_sources(file, network.sources, expected)
    return network


def _encoder(file: SingleFile, encoder: OriginalTextEncoder) -> Network:
    return _network(file, lambda: TextEncoder(encoder.config, projected=encoder.projected), encoder.sources)


def _check_unused(file: SingleFile, used: set[str]) -> int:
    """The number of tensors that are left out.

    Raises:
        CheckpointError: if one of them belongs to the U-Net, the autoencoder or a text encoder.
    """
    unused = [name for name in file.tensors if name not in used]
    for name in unused:
        if name.startswith((UNET, AUTOENCODER, "cond_stage_model.", "conditioner.")) and not UNUSED.fullmatch(name):
            raise CheckpointError(f"{file.path}: holds {abbreviate(name)}, which {file.family} does not have")
    return len(unused)


def _write(conversion: Conversion, folder: Path, vocabulary: Vocabulary) -> None:
    file = conversion.file
    index: dict[str, Any] = {
        "_class_name": PIPELINES[file.family is Family.SDXL, conversion.unet_config.in_channels],
        "_diffusers_version": DIFFUSERS_VERSION,
    }
    if file.family is Family.SDXL:
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    networks = (
        ("unet", "UNet2DConditionModel", conversion.unet_config, conversion.unet),
        ("vae", "AutoencoderKL", conversion.autoencoder_config, conversion.autoencoder),
    )
    for part, kind, config, network in networks:
        weights = read_sources(file, network.sources, network.expected)
        save_network(folder / part, kind, config.to_dict(), weights)
        index[part] = ["diffusers", kind]
    for encoder, network in conversion.encoders:
        index |= _write_encoder(file, folder, encoder, network, vocabulary)
    scheduler = scheduler_content(file.family, conversion.choice)
    save_json(folder / SCHEDULER_CONFIG, scheduler)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    save_json(folder / MODEL_INDEX, index)


def _write_encoder(
    file: SingleFile, folder: Path, encoder: OriginalTextEncoder, network: Network, vocabulary: Vocabulary
) -> dict[str, list[str]]:
    """Write a text encoder and its tokenizer; returns their entries of the index."""
    kind = "CLIPTextModelWithProjection" if encoder.projected else "CLIPTextModel"
    tokenizer = encoder.folder.replace("text_encoder", "tokenizer")
    save_weights(folder / encoder.folder / TEXT_ENCODER_WEIGHTS, read_sources(file, network.sources, network.expected))
    save_json(folder / encoder.folder / "config.json", {"architectures": [kind], **encoder.config.to_dict()})
    vocabulary.save(folder / tokenizer, encoder.config.max_position_embeddings, open_clip=encoder.open_clip)
    return {encoder.folder: ["transformers", kind], tokenizer: ["transformers", "CLIPTokenizer"]}


@contextmanager
def _complete_or_not_at_all(folder: Path) -> Iterator[Path]:
    """A temporary folder that gets its name at the end, or is removed."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        check_target(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _existing(folder: Path) -> Path:
    return next(path for path in folder.absolute().parents if path.exists())
