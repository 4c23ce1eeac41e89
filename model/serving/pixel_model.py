"""A served model is three verbs: condition, denoise, decode.

`condition` runs once per image of a job, `denoise` many times on a batch of anybody's
images, `decode` once per finished image and off the engine's thread. The caller knows
neither what a condition holds nor what shape the network works in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoised.model.backends.graphs import GraphedUNet
from denoised.model.backends.native.network import NativeUNet
from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.predictions import Estimate, estimate_from_output, score_from_epsilon
from denoised.model.diffusion.samplers import compile_plan
from denoised.model.errors import PlanError
from denoised.model.networks.unet import UNet
from denoised.model.serving.card import ModelCard


class PixelModel:
    """A U-Net on pixels, conditioned on a class index (or not at all)."""

    def __init__(
        self,
        unet: UNet,
        schedule: NoiseSchedule,
        prediction_type: str,
        grid: Grid,
        clipping: Clipping,
        card: ModelCard,
    ) -> None:
        self.unet: UNet | NativeUNet | GraphedUNet = unet.eval().requires_grad_(False)
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.grid = grid
        self.clipping = clipping
        self.card = card
        self.device = next(unet.parameters()).device
        self._compile = lru_cache(maxsize=256)(self._compile_plan)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the tensor that is denoised."""
        return (self.card.channels, self.card.height, self.card.width)

    def plan(
        self, sampler: str, steps: int, eta: float, spacing: str | None = None, karras: bool | None = None
    ) -> Plan:
        """The plan for a request on this model's noise schedule; made once, then remembered.

        spacing, karras: which levels it visits (`model.diffusion.grids`); None: as the model's own files say.

        Raises:
            PlanError: for what the sampler does not offer.
        """
        return self._compile(sampler, steps, eta, spacing, karras)

    def condition(self, label: int | None) -> Tensor:
        """What `denoise` needs to know of one image: () int64, the class, K for "no label".

        Raises:
            PlanError: for no label, where the network knows no class of that meaning.
        """
        if label is None and not self.card.unconditional:
            raise PlanError(f"label = null: {self.card.name} was trained with labels alone, so it needs one")
        return torch.tensor(len(self.card.labels) if label is None else label)

    @torch.inference_mode()
    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditions: Tensor) -> Estimate:
        """x: (B, C, H, W) at levels t, α, σ (B,); conditions: (B,) of `condition`. Row by row independent."""
        return self.believe(x, t, alpha, sigma, conditions)

    @property
    def flies_from(self) -> int | None:
        """Images from which on it is better to have two evaluations of half of them each begun at any time (`begin`)
        than one of all; None: never. Then the network needs no rest while what it said is worked on."""
        return self.unet.flies_from if isinstance(self.unet, NativeUNet) else None

    @torch.inference_mode()
    def begin(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditions: Tensor) -> Callable[[], Estimate]:
        """`denoise`; what is returned waits for it, where the network can be at work meanwhile. For few images that
        takes longer: one thread is at each.
        """
        if not isinstance(self.unet, NativeUNet):
            known = self.denoise(x, t, alpha, sigma, conditions)
            return lambda: known
        output = self.unet.begin(x, t, self._labels(conditions))
        return lambda: self._read(output(), x, alpha, sigma)

    def believe(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditions: Tensor) -> Estimate:
        """`denoise`, for those who differentiate it."""
        return self._read(self.unet(x, t, self._labels(conditions)), x, alpha, sigma)

    def _labels(self, conditions: Tensor) -> Tensor | None:
        return conditions.to(self.device) if self.unet.class_embedding is not None else None

    def _read(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        """What the network says of x."""
        mean, variance = output[:, : x.shape[1]], output[:, x.shape[1] :]  # of 2·C channels, the second half
        known = estimate_from_output(mean, x, alpha, sigma, self.prediction_type)
        if not variance.shape[1]:
            return known
        variance_output = (variance + 1) / 2 if self.grid.variance_type == "learned_range" else variance
        return replace(known, variance_output=variance_output)

    def score(
        self, x: Tensor, t: Tensor | float, label: str | int | Sequence[str | int | None] | None = None
    ) -> Tensor:
        """∇_x log p_t(x | label) = −ε̂/σ_t (Song et al. 2021, arXiv:2011.13456), as the network knows it.

        x: (B, C, H, W), scaled as x_t = α_t·x_0 + σ_t·ε; t: (B,) or one for all, in timesteps, 0 … T − 1,
        between them too; label: a class by name or index, one for each image, or None for the score of all
        classes. Returns (B, C, H, W).

        Raises:
            PlanError: for a shape, a time or a class that the model does not know.
        """
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise PlanError(f"x of shape {tuple(x.shape)} is not (B, C, H, W) with (C, H, W) = {self.shape}")
        times, alpha, sigma = self._level(t, len(x))
        labels = [label] * len(x) if label is None or isinstance(label, str | int) else list(label)
        conditions = torch.stack([self.condition(self._class(each)) for each in labels])
        known = self.denoise(x.to(self.device), times, alpha, sigma, conditions)
        return score_from_epsilon(known.epsilon, sigma)

    def _class(self, label: str | int | None) -> int | None:
        index = self.card.class_index(label) if label is not None else None
        if label is not None and index is None:
            raise PlanError(f"label = {label!r} is no class of this model ({len(self.card.labels)} classes from 0)")
        return index

    def _level(self, t: Tensor | float, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """t, α and σ (B,) float32."""
        last = self.schedule.timesteps - 1
        times = torch.as_tensor(t, dtype=torch.float64, device="cpu").expand(count)
        if not ((times >= 0) & (times <= last)).all():
            raise PlanError(f"t = {t} is outside 0 … {last}")
        alpha, sigma = (torch.from_numpy(level).float() for level in self.schedule.levels_at(times.numpy()))
        return times.float().to(self.device), alpha.to(self.device), sigma.to(self.device)

    def decode(self, x0: Tensor) -> npt.NDArray[np.uint8]:
        """x_0 (C, H, W) in [−1, 1] → (H, W, C) bytes, (x + 1)·127.5 rounded half to even, as diffusers does."""
        pixels = ((x0.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(1, 2, 0).numpy()

    def _compile_plan(self, sampler: str, steps: int, eta: float, spacing: str | None, karras: bool | None) -> Plan:
        grid = replace(
            self.grid,
            spacing=self.grid.spacing if spacing is None else spacing,
            karras=self.grid.karras if karras is None else karras,
        )
        return compile_plan(sampler, self.schedule, steps, grid, eta)
