"""Low-rank adapters (LoRA): the tensors of a file, in the dialects of peft, diffusers and kohya.

An adapter adds scale·B·A to a weight, with A (rank, in) and B (out, rank); scale is alpha/rank.
Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.checkpoints.lora.lora_base import wrong_base
from denoised.model.checkpoints.lora.lora_names import LoraPart, parse_lora_name
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.low_rank import LoraLayer


@dataclass(frozen=True)
class LoraTarget:
    """A weight that an adapter may change.

    Attributes:
        component: "unet", "text_encoder" or "text_encoder_2".
        module: the module's name in the component's network.
        shape: of the weight: (out, in) of a linear layer, (out, in, height, width) of a convolution.
        aliases: other names of the module that files may have, such as the original one.
    """

    component: str
    module: str
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()


def read_lora(
    tensors: Mapping[str, Tensor], targets: Iterable[LoraTarget], alphas: Mapping[str, float] | None = None
) -> list[LoraLayer]:
    """The adapters in the tensors of a file.

    targets: the weights of the model that the adapter is for.
    alphas: alpha by "component.module", for dialects that do not store it as a tensor; without one it is the rank.

    Raises:
        CheckpointError: for an adapter of another base model, an unknown name, a half that is missing, and shapes that
            fit neither each other nor the weight.
    """
    targets = list(targets)
    if reason := wrong_base(tensors, ((each.module, each.shape) for each in targets if each.component == "unet")):
        raise CheckpointError(reason)
    names = _names_by_component(targets)
    parts: dict[tuple[str, str], dict[LoraPart, Tensor]] = {}
    for name, tensor in tensors.items():
        component, module, part = parse_lora_name(name, names)
        own = parts.setdefault((component, module), {})
        if part in own:
            raise CheckpointError(f"tensor {abbreviate(name)} is a second {part} of {component}.{module}")
        own[part] = tensor
    if not parts:
        raise CheckpointError("the file holds no tensors")
    shapes = {(target.component, target.module): target.shape for target in targets}
    given = alphas or {}
    return [
        _build_layer(component, module, own, shapes[component, module], given.get(f"{component}.{module}"))
        for (component, module), own in parts.items()
    ]


def _build_layer(
    component: str, module: str, parts: Mapping[LoraPart, Tensor], shape: tuple[int, ...], alpha: float | None
) -> LoraLayer:
    name = f"{component}.{module}"
    for part in ("down", "up"):
        if part not in parts:
            raise CheckpointError(f"the adapter of {name} has no {part} tensor")
    down, up = _with_dimensions(parts["down"], shape), _with_dimensions(parts["up"], shape)
    rank = down.shape[0] if down.dim() else 0
    if rank == 0:
        raise CheckpointError(f"the down tensor of {name} is {tuple(down.shape)}: it has no rank")
    expected_down, expected_up = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
    for part, tensor, expected in (("down", down, expected_down), ("up", up, expected_up)):
        if tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"the {part} tensor of {name} is {tuple(tensor.shape)}, not {expected}: the weight is {shape}"
            )
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise CheckpointError(f"alpha of {name} is {tuple(parts['alpha'].shape)}, not one number")
        alpha = float(parts["alpha"].item())
    layer = LoraLayer(component, module, down, up, float(rank) if alpha is None else alpha)
    if not torch.isfinite(torch.tensor(layer.alpha)):
        raise CheckpointError(f"alpha of {name} is {layer.alpha}, not a finite number")
    return layer


def _with_dimensions(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A matrix for a 1×1 convolution, or the reverse, with the dimensions of its weight."""
    if len(shape) == 4 and tensor.dim() == 2:
        return tensor[:, :, None, None]
    if len(shape) == 2 and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor


def _names_by_component(targets: list[LoraTarget]) -> dict[str, dict[str, str]]:
    """For each component: every name of a module, with dots and with underscores for dots → the module."""
    names: dict[str, dict[str, str]] = {}
    for target in targets:
        own = names.setdefault(target.component, {})
        for alias in (target.module, *target.aliases):
            own[alias] = own[alias.replace(".", "_")] = target.module
    return names
