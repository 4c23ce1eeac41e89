"""Adapter files drawn at random for the networks of a pipeline, in every dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from denoised.model.checkpoints.lora.lora import LoraTarget

Dialect = Callable[[LoraTarget, Tensor, Tensor], dict[str, Tensor]]


def peft(target: LoraTarget, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    name = f"{target.component}.{target.module}"
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def diffusers(target: LoraTarget, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    name = f"{target.component}.{target.module}"
    return {f"{name}.lora.down.weight": down, f"{name}.lora.up.weight": up}


def kohya(target: LoraTarget, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[target.component]
    name = f"{prefix}_{target.module.replace('.', '_')}"
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}


def halves(target: LoraTarget, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and B for a weight, so that B·A is about a fifth as large as the weight."""
    out, *rest = target.shape
    down = torch.randn(rank, *rest, generator=generator) / down_scale(rest)
    return down, 0.2 * torch.randn(out, rank, *[1] * (len(rest) - 1), generator=generator) / rank**0.5


def down_scale(rest: Sequence[int]) -> float:
    return float(torch.tensor(rest).prod()) ** 0.5


def write_lora(
    path: Path, targets: Sequence[LoraTarget], dialect: Dialect, *, rank: int = 4, seed: int = 0
) -> dict[str, Tensor]:
    """Write an adapter of these targets, and return its tensors."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for target in targets:
        tensors |= dialect(target, *halves(target, rank, generator))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return tensors


def targets_of(networks: Mapping[str, nn.Module], *pieces: str) -> list[LoraTarget]:
    """The linear layers and convolutions whose names contain one of these pieces."""
    from denoised.model.checkpoints.lora.lora_targets import lora_targets

    return [target for target in lora_targets(networks) if any(piece in target.module for piece in pieces)]
