"""Noise is drawn on the CPU, whatever device the network is on: a seed gives the same x_T everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from denoised.model.serving.conditioning import ConditioningRequest
from denoised.worker.engine.trajectory import Seeds, Trajectory

DEVICES = ["cpu", "meta"]  # a meta tensor has no numbers, so none can be drawn on it


class Moves(TorchDispatchMode):
    """Records each tensor that is drawn, and each that is copied from the CPU to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []
        self.moved: list[Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.randn, torch.ops.aten.normal_, torch.ops.aten.rand):
            self.drawn.append(outcome.clone())
        if function.overloadpacket is torch.ops.aten._to_copy and outcome.device != args[0].device:
            self.moved.append(args[0].clone())
        return outcome


def begin(model: Any, device: str) -> Trajectory:
    return Trajectory.begin(
        job="j",
        index=0,
        model="fake",
        plan=model.plan("ddpm", 9, 0.0),
        conditioning=model.encode([ConditioningRequest(label=1)]),
        seeds=Seeds(7),
        shape=model.shape,
        device=torch.device(device),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_x_t_and_each_z_are_drawn_on_the_cpu_and_equal_for_every_device(device: str, model: Any) -> None:
    """diffusers#13298: its CPU and CUDA generators differ, so the same seed gave different images."""
    reference = begin(model, "cpu")
    with Moves() as moves:
        trajectory = begin(model, device)
        z = trajectory.draw()
    assert trajectory.registers.device.type == device
    assert trajectory.generator.device.type == "cpu"
    assert [each.device.type for each in moves.drawn] == ["cpu", "cpu"]
    x = trajectory.registers if device == "cpu" else moves.moved[0]
    assert torch.equal(x, reference.registers)
    assert x.abs().sum() > 0
    assert torch.equal(z, reference.draw())
