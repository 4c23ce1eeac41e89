"""Compares a backend with the network that it stands for, before it serves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.backends.backend import Backend
from denoised.model.backends.numerics import Precision
from denoised.model.errors import KernelError
from denoised.model.networks.unet.unet import UNet

ROWS = 4
# How far a row of the output may be from the network's own, relative to its norm. An operation rounds by 2⁻²⁴ in
# float32, 2⁻¹¹ in TF32 and float16, and 2⁻⁹ in bfloat16; over a deep network that adds up to about a tenth of these
# limits.
LIMITS: dict[Precision, float] = {"float32": 1e-3, "tf32": 3e-2, "bfloat16": 2e-1, "float16": 3e-2}


@dataclass(frozen=True)
class ReferenceRows:
    """Random inputs of a network, with its own outputs in float32.

    Attributes:
        x: (B, C, H, W) unit noise.
        t: (B,) from the first timestep to the last.
        label: (B,) from the first class to the last, which may mean "no label"; None for a network without classes.
        output: (B, out_channels, H, W).
    """

    x: Tensor
    t: Tensor
    label: Tensor | None
    output: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, unet: UNet, shape: tuple[int, int, int], timesteps: int) -> ReferenceRows:
        """Evaluate a network, on its device. shape: (C, H, W) of its images; timesteps: T of its training."""
        device = next(unet.parameters()).device
        x = torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        t = torch.linspace(0, timesteps - 1, ROWS).to(device)
        label = None
        if unet.class_embedding is not None:
            last = (unet.config.num_class_embeds or ROWS) - 1
            label = torch.linspace(0, last, ROWS).round().long().to(device)
        return cls(x, t, label, unet(x, t, label))

    @torch.inference_mode()
    def check(self, backend: Backend, name: str, precision: Precision = "float32") -> None:
        """Check that a backend gives the same outputs apart from rounding, also when it works in the background.

        A row for which the network itself gives no finite output is left out.

        Raises:
            KernelError: if it does not, with the largest difference.
        """
        for outputs in (backend(self.x, self.t, self.label), backend.begin(self.x, self.t, self.label)()):
            for row, (found, expected) in enumerate(zip(outputs, self.output, strict=True)):
                norm = expected.norm().item()
                error = (found - expected).norm().item()
                # Rounding has a floor, too: an output of almost zero is a difference of larger numbers.
                limit = LIMITS[precision] * max(norm, 1e-3 * expected.numel() ** 0.5)
                if expected.isfinite().all() and not error <= limit:
                    raise KernelError(
                        f"the {name} backend computes another function than the network: at t = {self.t[row]:g} it "
                        f"is off by {error / max(norm, 1e-30):.2g} of the output (allowed: {LIMITS[precision]:g})"
                    )
