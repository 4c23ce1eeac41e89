"""A served model whose network works on pixels, conditioned on a class index or on nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from denoised.model.backends.backend import Backend, EagerBackend
from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.level_choice import MODELS_OWN, LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.predictions import Estimate, estimate_from_output, score_from_epsilon
from denoised.model.errors import PlanError
from denoised.model.networks.evaluation_memory import RESIDUAL_MAPS, EvaluationMemory
from denoised.model.networks.unet.unet import UNet
from denoised.model.serving.card import ModelCard
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.pictures import from_uint8, to_uint8
from denoised.model.serving.plan_compiler import PlanCompiler
from denoised.model.serving.protocol import Picture, Pictures

LABEL = "label"  # the one tensor of this model's conditioning: (B,) int64


class PixelModel:
    """A U-Net on pixels: a `ServedModel`.

    Attributes:
        unet: The network as it was loaded.
        backend: What evaluates it; the network itself until another is assigned (`model.backends.selection`).
    """

    def __init__(
        self,
        unet: UNet,
        schedule: NoiseSchedule,
        prediction_type: str,
        grid: Grid,
        clipping: Clipping,
        card: ModelCard,
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.backend: Backend = EagerBackend(self.unet)
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.grid = grid
        self.clipping = clipping
        self.card = card
        self.device = next(unet.parameters()).device
        self._plans = PlanCompiler(schedule, grid, card.grid.learned)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the tensor that is denoised."""
        return (self.card.channels, self.card.height, self.card.width)

    def shape_of(self, request: ConditioningRequest) -> tuple[int, int, int]:
        """The same for every request."""
        return self.shape

    @property
    def min_pipelined_images(self) -> int | None:
        """See `ServedModel`."""
        return self.backend.min_pipelined_images

    def plan(self, sampler: str, steps: int, eta: float, levels: LevelChoice = MODELS_OWN) -> Plan:
        """Compile the plan of a request on this model's noise schedule; the last 256 plans are cached.

        levels: which noise levels it visits; as the model's own files say if left out.

        Raises:
            PlanError: for values that the sampler does not offer.
        """
        return self._plans.compile(sampler, steps, eta, levels)

    def encode(self, requests: Sequence[ConditioningRequest]) -> Conditioning:
        """Encode class indices: `label` (B,) int64, where K stands for "no label".

        Raises:
            PlanError: for a label that is not a class, and for none if the network was trained with labels alone.
        """
        return Conditioning({LABEL: torch.tensor([self._label_index(request) for request in requests])})

    def with_pictures(
        self, conditioning: Conditioning, requests: Sequence[ConditioningRequest], pictures: Mapping[str, Picture]
    ) -> Conditioning:
        """The same conditioning: the network sees no picture but the noisy one."""
        return conditioning

    def prepare(self, requests: Sequence[ConditioningRequest]) -> None:
        """Nothing: classes need no network."""

    @torch.inference_mode()
    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
        """Estimate (x̂_0, ε̂) of x (B, C, H, W) at levels t, α, σ (B,)."""
        return self.denoise_with_grad(x, t, alpha, sigma, conditioning)

    @torch.inference_mode()
    def begin(
        self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning
    ) -> Callable[[], Estimate]:
        """Begin what `denoise` does, in the background if the backend can, and return a function that waits for it.

        A pipelined evaluation gives each image to one thread, so for few images it takes longer than `denoise`.
        """
        # (B, out_channels, H, W) when it is called.
        output = self.backend.begin(x, t, self._labels(conditioning))
        return lambda: self._estimate(output(), x, alpha, sigma)

    def denoise_with_grad(
        self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning
    ) -> Estimate:
        """`denoise` outside of inference mode, for callers that differentiate it by x."""
        return self._estimate(self.backend(x, t, self._labels(conditioning)), x, alpha, sigma)

    def score(
        self, x: Tensor, t: Tensor | float, label: str | int | Sequence[str | int | None] | None = None
    ) -> Tensor:
        """∇_x log p_t(x | label) = −ε̂/σ_t (Song et al. 2021, arXiv:2011.13456), as the network estimates it.

        x: (B, C, H, W), scaled as x_t = α_t·x_0 + σ_t·ε; t: (B,) or one for all, in timesteps 0 … T − 1, fractions
        allowed; label: a class by name or index, one per image, or None for the unconditional score.
        Returns (B, C, H, W).

        Raises:
            PlanError: for a shape, a time or a class that the model does not take, and for a consistency model.
        """
        self.check_has_scores()
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise PlanError(f"x of shape {tuple(x.shape)} is not (B, C, H, W) with (C, H, W) = {self.shape}")
        times, alpha, sigma = self._level(t, len(x))
        labels = [label] * len(x) if label is None or isinstance(label, str | int) else list(label)
        conditioning = self.encode([ConditioningRequest(label=self._class_index(each)) for each in labels])
        # Unguided: the score of p_t(x | label), not that of a sharpened distribution.
        found = self.denoise(x.to(self.device), times, alpha, sigma, conditioning)
        return score_from_epsilon(found.epsilon, sigma)

    def check_has_scores(self) -> None:
        """Refuse a consistency model, whose x̂_0 is the end of a trajectory, not the mean that scores follow from.

        Raises:
            PlanError: for a consistency model.
        """
        if self.grid.consistency_levels:
            raise PlanError(f"{self.card.name} is a consistency model, which has neither scores nor likelihoods")

    def decode(self, x0: Tensor) -> Pictures:
        """x_0 (B, C, H, W) in [−1, 1] → (B, H, W, C) bytes, (x + 1)·127.5 rounded half to even, as diffusers does."""
        return to_uint8(x0)

    def encode_pictures(self, pictures: Pictures) -> Tensor:
        """(B, H, W, C) bytes → x_0 (B, C, H, W) in [−1, 1]."""
        return from_uint8(pictures)

    def evaluation_bytes(self, height: int, width: int) -> int:
        """See `EvaluationMemory`."""
        config = self.unet.config
        levels = len(config.block_out_channels)
        layers, maps = [config.layers_per_block] * levels, [RESIDUAL_MAPS] * levels
        return EvaluationMemory(config.block_out_channels, layers, maps).row_bytes(height, width)

    def decode_limit(self, shape: tuple[int, int, int]) -> int:
        """All images of a job: there is no decoder network."""
        return self.card.max_images

    def preview(self, x0: Tensor) -> Pictures:
        """The same as `decode`: there is no decoder network to save."""
        return self.decode(x0)

    def _label_index(self, request: ConditioningRequest) -> int:
        classes = len(self.card.labels)
        if request.label is None and not self.card.unconditional:
            raise PlanError(f"label = null: {self.card.name} was trained with labels alone, so it needs one")
        if request.label is not None and not 0 <= request.label < classes:
            raise PlanError(f"label = {request.label} is not a class of {self.card.name} ({classes} classes from 0)")
        # "No label" is the embedding after the last class (Ho & Salimans 2022, arXiv:2207.12598, section 3.1).
        return classes if request.label is None else request.label

    def _labels(self, conditioning: Conditioning) -> Tensor | None:
        """The label that the network takes; None if it has no classes."""
        return conditioning[LABEL].to(self.device) if self.unet.class_embedding is not None else None

    def _estimate(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        """Read the network's output for x."""
        mean, variance = output[:, : x.shape[1]], output[:, x.shape[1] :]  # a learned variance has C more channels
        result = estimate_from_output(mean, x, alpha, sigma, self.prediction_type)
        if not variance.shape[1]:
            return result
        # learned_range: v in [−1, 1] interpolates between log β̃ and log β (Nichol & Dhariwal 2021, eq. 15).
        variance_output = (variance + 1) / 2 if self.grid.variance_type == "learned_range" else variance
        return replace(result, variance_output=variance_output)

    def _class_index(self, label: str | int | None) -> int | None:
        index = self.card.class_index(label) if label is not None else None
        if label is not None and index is None:
            several = self.card.matching_labels(label) if isinstance(label, str) else []
            if several:
                raise PlanError(f"label = {label!r} is ambiguous (allowed: an exact name: {', '.join(several)})")
            raise PlanError(f"label = {label!r} is not a class of this model ({len(self.card.labels)} classes from 0)")
        return index

    def _level(self, t: Tensor | float, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """t, α and σ (B,) float32."""
        last = self.schedule.timesteps - 1
        # float64, because the schedule's tables are: α and σ between timesteps are rounded once, at the end.
        times = torch.as_tensor(t, dtype=torch.float64, device="cpu").expand(count)
        if not ((times >= 0) & (times <= last)).all():
            raise PlanError(f"t = {t} is outside 0 … {last}")
        alpha, sigma = (torch.from_numpy(level).float() for level in self.schedule.levels_at(times.numpy()))
        return times.float().to(self.device), alpha.to(self.device), sigma.to(self.device)
