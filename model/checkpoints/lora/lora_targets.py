"""The weights of a text-to-image model that a low-rank adapter may change: all linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from denoised.model.checkpoints.lora.lora import LoraTarget
from denoised.model.checkpoints.original_names import original_module_name
from denoised.model.networks.text_unet.text_unet import TextUNet


def lora_targets(networks: Mapping[str, nn.Module]) -> list[LoraTarget]:
    """The targets in the networks of a pipeline.

    networks: by component: "unet", "text_encoder" and, if there is one, "text_encoder_2". Shapes are read, weights are
        not, so that the networks may be on the meta device.
    """
    return [target for component, network in networks.items() for target in _targets_in(component, network)]


def _targets_in(component: str, network: nn.Module) -> list[LoraTarget]:
    config = network.config if isinstance(network, TextUNet) else None
    found = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            original = original_module_name(name, config) if config is not None else None
            aliases = () if original is None else (original,)
            found.append(LoraTarget(component, name, tuple(module.weight.shape), aliases))
    return found
