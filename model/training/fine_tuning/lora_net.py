"""The trainable branches of a low-rank adapter next to the attention projections of frozen networks.

Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1: A is drawn at random, B begins as zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.networks.low_rank import LoraLayer, LowRankBranch

# The layers that adapters of diffusers' trainers change by default: of U-Nets and of text encoders.
TARGETS = re.compile(r".*\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|self_attn\.(q_proj|k_proj|v_proj|out_proj))")
DOT = "-"  # for a dot in the name of a branch, which names no path of modules


class LoraNet(nn.Module):
    """The branches. alpha equals the rank, so that B·A is added as it is.

    networks: by component (`LoraLayer.component`); each gets a hook next to its projections, and no gradient.
    """

    def __init__(self, networks: Mapping[str, nn.Module], rank: int) -> None:
        super().__init__()
        self.branches = nn.ModuleDict()
        for component, network in networks.items():
            network.requires_grad_(False)
            for name, module in network.named_modules():
                if isinstance(module, nn.Linear) and TARGETS.fullmatch(name):
                    branch = LowRankBranch(initial_layer(component, name, module, rank), module)
                    self.branches[f"{component}.{name}".replace(".", DOT)] = branch.requires_grad_(True)
                    module.register_forward_hook(_adder(branch))


def initial_layer(component: str, name: str, base: nn.Linear, rank: int) -> LoraLayer:
    """A is uniform within ±1/√in, as peft draws it; B is zero."""
    down = torch.empty(rank, base.in_features)
    # The bound is √6/√((1 + a²)·in) = 1/√in for a = √5.
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return LoraLayer(component, name, down, torch.zeros(base.out_features, rank), alpha=float(rank))


def save_lora(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write an adapter in peft's tensor names, in float32.

    weights: the state dict of a `LoraNet`, or the moving average of one.
    """
    tensors = {_file_name(name): value.detach().float().cpu().contiguous() for name, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))


def _file_name(name: str) -> str:
    """`branches.unet-mid_block-….to_q.down.weight` → `unet.mid_block.….to_q.lora_A.weight`."""
    _, branch, half, _ = name.split(".")
    return f"{branch.replace(DOT, '.')}.{'lora_A' if half == 'down' else 'lora_B'}.weight"


def _adder(branch: LowRankBranch) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # h = W·x + (alpha/rank)·B·A·x (Hu et al. 2021, equation 3); zero at first, because B is.
        return output + branch(inputs[0])

    return add
