"""Attach the adapters of a folder to the networks of a text-to-image model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from denoised.model.backends.adapted_backend import AdaptedBackend
from denoised.model.backends.adapted_network import AdaptedNetwork
from denoised.model.backends.text_encoder_selection import EncoderSelection
from denoised.model.backends.text_selection import TextSelection
from denoised.model.checkpoints.lora.lora_targets import lora_targets
from denoised.model.networks.low_rank import LoraLayer
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.serving.card import CardLora
from denoised.model.serving.lora_library import LoraLibrary, LoraSelection, select_loras

UNET, ENCODERS = "unet", ("text_encoder", "text_encoder_2")  # components, as files name them


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model while it serves.

    Attributes:
        library: Which there are.
        backend: Evaluates the U-Net with them.
    """

    library: LoraLibrary
    backend: AdaptedBackend


@dataclass(frozen=True)
class FoundAdapters:
    """The adapters of a folder that fit a model.

    Attributes:
        library: Those adapters.
        listed: The same for the model's card.
        problems: Why each of the others does not fit.
    """

    library: LoraLibrary
    listed: list[CardLora]
    problems: Sequence[str]

    def adapt_encoder(self, index: int, selection: EncoderSelection, geometry: TextEncoder) -> AdaptedNetwork:
        """A text encoder with the adapters. index: of the encoder; geometry: it as it was read."""
        return self._adapt(ENCODERS[index], selection.network, geometry, packed=selection.packed)

    def adapt_unet(self, selection: TextSelection, unet: TextUNet) -> Adapters:
        """What evaluates the U-Net with adapters or residuals, by a backend that was selected for them.

        unet: the network as it was read; it may have lost its weights to the backend.
        """
        assert selection.adaptable is not None
        network = self._adapt(UNET, selection.network, unet, packed=selection.packed)
        return Adapters(self.library, AdaptedBackend(selection.backend, selection.adaptable, network))

    def _adapt(self, component: str, network: nn.Module, geometry: nn.Module, *, packed: bool) -> AdaptedNetwork:
        load = partial(_layers_of, self.library, component)
        return AdaptedNetwork(network, geometry, load, self.library.names(component), packed=packed)


def find_adapters(folder: Path | None, unet: TextUNet, encoders: Sequence[TextEncoder]) -> FoundAdapters:
    """The adapters of a folder that fit a model with these networks, whose layers are PyTorch's own; none without one.

    Raises:
        CheckpointError: if the folder cannot be read.
    """
    targets = lora_targets({UNET: unet, **dict(zip(ENCODERS, encoders, strict=False))})
    selection = select_loras(folder, targets) if folder is not None else LoraSelection([], [])
    listed = [CardLora(name=file.name, digest=file.digest) for file in selection.fitting]
    return FoundAdapters(LoraLibrary(selection.fitting, targets), listed, selection.problems)


def _layers_of(library: LoraLibrary, component: str, name: str) -> Sequence[LoraLayer]:
    return library.layers(name, component)
