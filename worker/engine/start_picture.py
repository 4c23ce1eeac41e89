"""The picture that an image starts from, and the part of it that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.diffusion.plans import Plan
from denoised.model.serving.protocol import ServedModel

InputPictures = Mapping[str, npt.NDArray[Any]]
"""The pictures of a request by field, (H, W, C) of uint8 each, and the numbers of an array, float32."""

WHITE = 128  # from this level on, a mask is white


@dataclass(frozen=True, eq=False)
class StartPicture:
    """A picture as a model denoises it.

    Attributes:
        x0: (C, h, w) float32, pixels or latents.
        kept: (1, h, w) bool, where the picture is kept; None: nowhere.
        adds_noise: Whether the first noise is added to the picture; otherwise it replaces the picture, as far as that
            is not kept.
    """

    x0: Tensor
    kept: Tensor | None = None
    adds_noise: bool = True

    @classmethod
    def of(cls, request: SamplingRequest, model: ServedModel, pictures: InputPictures) -> StartPicture | None:
        """What a request starts from; None if that is noise alone."""
        if not request.starts_from_picture:
            return None
        x0 = model.encode_pictures(pictures["image"][None])[0].to(model.device)
        kept = _kept(pictures["mask"], x0) if "mask" in pictures and model.card.pictures == "start" else None
        return cls(x0, kept, adds_noise=request.strength < 1)

    def begin(self, plan: Plan, noise: Tensor) -> Tensor:
        """x (1, C, h, w) at the first row of a plan. noise: unit noise (C, h, w)."""
        if not plan.evaluations:
            return self.x0[None]
        if not self.adds_noise:
            return plan.initial_scale * noise[None]
        return self._noised(plan, 0, noise)[None]

    def restore(self, x: Tensor, plan: Plan, row: int, noise: Tensor) -> Tensor:
        """x (C, h, w) with the kept part as the forward process has it at a row; at the end, the picture itself.

        noise: that of the image's beginning (Lugmayr et al. 2022, arXiv:2201.09865, eq. 8, draws it anew; diffusers'
        pipelines keep it).
        """
        if self.kept is None:
            return x
        known = self._noised(plan, row, noise) if row < plan.evaluations else self.x0
        return torch.where(self.kept, known, x)

    def _noised(self, plan: Plan, row: int, noise: Tensor) -> Tensor:
        # x_t = α_t·x_0 + σ_t·ε
        return float(plan.alpha[row]) * self.x0 + float(plan.sigma[row]) * noise


def _kept(mask: npt.NDArray[np.uint8], x0: Tensor) -> Tensor:
    """(1, h, w) bool of a mask (H, W, 1); of each block of pixels, the upper left one decides, as in diffusers."""
    rows, columns = (mask.shape[axis] // x0.shape[axis + 1] for axis in (0, 1))
    black = mask[::rows, ::columns, 0] < WHITE
    return torch.from_numpy(np.ascontiguousarray(black))[None].to(x0.device)
