"""The noise levels that a sampler visits: the fields of scheduler_config.json, as functions.

Three families of diffusers' schedulers thin out the same T timesteps differently under the same word
("leading", "trailing", "linspace"; Lin et al. 2023, arXiv:2305.08891, table 2), and the image of a seed
depends on it. The level after a timestep is always the next entry of the list, never t − T//N.

Below, ρ = σ/α, the noise level σ of Karras et al. 2022 (arXiv:2206.00364).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from denoised.model.diffusion.noise import Float64, NoiseSchedule
from denoised.model.diffusion.spacings import CAPPED_RATIO, STEEP_RATIO, RatioSpacing
from denoised.model.errors import PlanError

SPACINGS = ("leading", "trailing", "linspace")
VARIANCES = ("fixed_small", "fixed_large", "learned_range", "learned")
# Replaces α = 0 at the end of a schedule with zero terminal SNR, for the samplers on ρ; diffusers has ᾱ = 2^−24.
MIN_ALPHA = 2.0**-12
# The least factor between that level and the next one, where 1/MIN_ALPHA is too low for it; see `_finite_start`.
MIN_FIRST_RATIO = 2.0


@dataclass(frozen=True)
class Grid:
    """How a model's timesteps are thinned out.

    Attributes:
        spacing: one of `SPACINGS`.
        steps_offset: added to the timesteps of leading spacing.
        set_alpha_to_one: whether DDIM's last step ends at ᾱ = 1 or at the ᾱ of timestep 0.
        variance_type: one of `VARIANCES`, for DDPM.
        ratio_spacing: which levels ρ are visited instead of timesteps; None: the timesteps.
        lambda_min: the least λ = log(α/σ) that the DPM-Solver family starts at.
        original_steps: the number of timesteps that a distilled model was distilled on, for LCM and TCD.
        timestep_scaling: the factor on t in the boundary condition of LCM.
        consistency_levels: the levels ρ, falling, at which a consistency model was tuned; empty for other models.
    """

    spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    variance_type: str = "fixed_small"
    ratio_spacing: RatioSpacing | None = None
    lambda_min: float = -np.inf
    original_steps: int = 50
    timestep_scaling: float = 10.0
    consistency_levels: tuple[float, ...] = ()


@dataclass(frozen=True)
class Levels:
    """N noise levels and the end level.

    Attributes:
        t: (N,) float64, in units of training timesteps, whole or not.
        alpha, sigma: (N + 1,) float64; the last entry is the end of the last step.
        initial_scale: x_T is this times unit noise.
    """

    t: Float64
    alpha: Float64
    sigma: Float64
    initial_scale: float = 1.0

    @property
    def steps(self) -> int:
        """N."""
        return len(self.t)

    def interval(self, i: int) -> tuple[float, float, float, float]:
        """α, σ of level i, then α, σ of level i + 1."""
        return self.alpha[i], self.sigma[i], self.alpha[i + 1], self.sigma[i + 1]

    def without_first(self, count: int) -> Levels:
        """The levels from the one with index `count` on. A run there starts from a picture, not from noise alone."""
        return replace(self, t=self.t[count:], alpha=self.alpha[count:], sigma=self.sigma[count:])

    @property
    def ratio(self) -> Float64:
        """ρ = σ/α (N + 1,), the noise level of Karras et al. 2022."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> Float64:
        """λ = log(α/σ) (N + 1,) of Lu et al. 2022 (arXiv:2206.00927); +∞ at an end without noise."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)


def timesteps(total: int, steps: int, spacing: str = "leading", offset: int = 0) -> list[int]:
    """`steps` timesteps of 0 … total − 1, strictly falling, as DDPM and DDIM thin them out.

    Raises:
        PlanError: if `steps` is not in 1 … total, or the offset leads past the last timestep.
    """
    if not 1 <= steps <= total:
        raise PlanError(f"steps = {steps} is outside 1 … {total}")
    # The formulas of Lin et al. 2023, table 2, counted from 0; the first entry has the most noise. They are computed
    # as diffusers does, rounding errors included: these decide which way a tie such as 62.5 is rounded.
    if spacing == "leading":
        ts = [i * (total // steps) + offset for i in reversed(range(steps))]
    elif spacing == "trailing":
        # The rounding error of total/steps may make arange one entry too long; diffusers keeps that entry, t = −1.
        ts = (np.arange(total, 0, -total / steps)[:steps].round() - 1).astype(int).tolist()
    elif spacing == "linspace":
        # One step starts at the last timestep, not at 0 as in diffusers.
        ts = np.linspace(0, total - 1, steps).round()[::-1].astype(int).tolist() if steps > 1 else [total - 1]
    else:
        raise PlanError(f"timestep_spacing = {spacing!r} is not supported (supported: {', '.join(SPACINGS)})")
    _check_first(ts[0], total, steps, offset)
    return ts


def discrete_levels(schedule: NoiseSchedule, steps: int, grid: Grid, *, end_alpha_one: bool) -> Levels:
    """Levels of DDPM and DDIM: whole timesteps, then ᾱ = 1 or, without `end_alpha_one`, the ᾱ of timestep 0.

    Levels ρ between the timesteps end at ᾱ = 1.
    """
    ts = timesteps(schedule.timesteps, steps, grid.spacing, grid.steps_offset)
    if grid.ratio_spacing is not None:
        table = noise_ratios(schedule)
        return _spaced_levels(grid.ratio_spacing.ratios(table, steps, table[ts[0]], table[ts[-1]]), table)
    # ᾱ after the last step: 1 gives x_0 itself; the ᾱ of timestep 0 leaves σ_0 of noise.
    end_alpha, end_sigma = (1.0, 0.0) if end_alpha_one else (float(schedule.alpha[0]), float(schedule.sigma[0]))
    return Levels(
        t=np.asarray(ts, dtype=np.float64),
        alpha=np.append(schedule.alpha[ts], end_alpha),
        sigma=np.append(schedule.sigma[ts], end_sigma),
    )


def ratio_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """Levels of the samplers on ρ (Euler, LMS): linspace lies between timesteps; the end is without noise.

    As in diffusers, x_T is unit noise times σ_T, or times 1 with leading spacing.
    """
    if grid.spacing == "linspace" and 1 <= steps <= schedule.timesteps:
        t = np.linspace(schedule.timesteps - 1, 0, steps)
    else:
        t = np.asarray(timesteps(schedule.timesteps, steps, grid.spacing, grid.steps_offset), dtype=np.float64)
    table = noise_ratios(schedule)
    # As in diffusers: ρ is linear between timesteps here, but log ρ is in `_time_of`.
    ratio = _finite_start(np.interp(t, np.arange(schedule.timesteps), table), t, schedule)
    if grid.ratio_spacing is not None:
        ratio = grid.ratio_spacing.ratios(table, steps, ratio[0], ratio[-1])
        t = _time_of(ratio, table)
    levels = _levels_at(ratio, t)
    # x̄_T = √(ρ² + 1)·z for leading spacing, else x̄_T = ρ·z; times α.
    return levels if grid.spacing == "leading" else replace(levels, initial_scale=float(levels.sigma[0]))


def capped_ratio_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """`ratio_levels` without the steep start of some schedules, which ruins two-stage solvers.

    From ρ to ρ' Heun's correction multiplies the difference of its two estimates by ρ/(2ρ'). Cosine schedules
    go up to ρ = 20,000, where x_t holds nothing of the image: on these the timesteps above ρ = 20 are left
    out, unless that leaves fewer timesteps than steps.
    """
    if grid.ratio_spacing is not None and grid.ratio_spacing.names_start:
        return ratio_levels(schedule, steps, grid)
    kept = capped_timesteps(schedule, grid)
    if steps <= kept < schedule.timesteps and not _names_beyond(grid, noise_ratios(schedule)[:kept]):
        schedule = NoiseSchedule(schedule.alpha[:kept], schedule.sigma[:kept])
    return ratio_levels(schedule, steps, grid)


def capped_timesteps(schedule: NoiseSchedule, grid: Grid) -> int:
    """How many timesteps `capped_ratio_levels` keeps, counted from 0."""
    ratio = noise_ratios(schedule)
    return int(np.count_nonzero(ratio <= CAPPED_RATIO)) if ratio[-1] > STEEP_RATIO else schedule.timesteps


def midpoint_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """`capped_ratio_levels` with √(ρ·ρ') between each two: 2·N − 1 levels and the end.

    √(ρ·ρ') is the midpoint in λ = −log ρ.
    """
    whole = capped_ratio_levels(schedule, steps, grid)
    middle = np.sqrt(whole.ratio[:-2] * whole.ratio[1:-1])  # (N − 1,): the last step, to ρ = 0, has none
    ratio = np.zeros(2 * steps)  # ρ_0, √(ρ_0·ρ_1), ρ_1, …, ρ_(N−1), 0
    ratio[0::2], ratio[1:-1:2] = whole.ratio[:-1], middle
    t = np.zeros(2 * steps - 1)
    t[0::2], t[1::2] = whole.t, _time_of(middle, noise_ratios(schedule))
    alpha = 1 / np.sqrt(1 + ratio**2)
    return Levels(t, alpha, ratio * alpha, whole.initial_scale)


def solver_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """Levels of the DPM-Solver family: a grid of N + 1 timesteps without the lowest; the end is without noise.

    Where that grid would repeat a timestep (steps close to T), it is that of DDIM. Timesteps with
    λ below `grid.lambda_min` are left out.
    """
    table = noise_ratios(schedule)
    total, offset = solver_timesteps(schedule, grid), grid.steps_offset
    if _names_beyond(grid, table[:total]):
        total = schedule.timesteps
    ts = timesteps(total, steps, grid.spacing, offset if grid.spacing != "leading" else 0)
    if grid.spacing == "linspace":
        # N + 1 timesteps from 0 to the last, then without 0.
        finer = [round(t) for t in np.linspace(0, total - 1, steps + 1)][::-1][:-1]
        ts = finer if len(set(finer)) == steps else ts
    elif grid.spacing == "leading":
        stride = total // (steps + 1)  # 0 for steps close to T: then DDIM's grid
        ts = [i * stride for i in range(steps, 0, -1)] if stride else ts
        ts = [t + offset for t in ts]
        _check_first(ts[0], total, steps, offset)
    t = np.asarray(ts, dtype=np.float64)
    ratio = _finite_start(table[ts], t, schedule)
    if grid.ratio_spacing is not None:
        # From the whole schedule, not from the thinned one, as in diffusers.
        return _spaced_levels(grid.ratio_spacing.ratios(table[:total], steps, table[total - 1], table[0]), table)
    return _levels_at(ratio, t)


def _names_beyond(grid: Grid, table: Float64) -> bool:
    """Whether a request names a level from the highest ρ of these timesteps on: then no timesteps are left out."""
    return grid.ratio_spacing is not None and grid.ratio_spacing.highest_named >= table[-1]


def _spaced_levels(ratio: Float64, table: Float64) -> Levels:
    """The levels ρ (N,), then the end without noise."""
    return _levels_at(ratio, _time_of(ratio, table))


def _levels_at(ratio: Float64, t: Float64) -> Levels:
    """The levels ρ (N,) of times t, then the end without noise; x_T is unit noise."""
    alpha = 1 / np.sqrt(1 + ratio**2)  # from α² + σ² = 1
    return Levels(t, np.append(alpha, 1.0), np.append(ratio * alpha, 0.0))


def solver_timesteps(schedule: NoiseSchedule, grid: Grid) -> int:
    """How many timesteps have λ of at least `grid.lambda_min`; they are the first, because λ = −log ρ falls with t."""
    return int(np.count_nonzero(-np.log(noise_ratios(schedule)) >= grid.lambda_min))


def noise_ratios(schedule: NoiseSchedule) -> Float64:
    """ρ = σ/α of every timestep (T,), strictly rising; finite also where the schedule ends in α = 0."""
    t = np.arange(schedule.timesteps, dtype=np.float64)
    alpha = np.where(schedule.alpha > 0, schedule.alpha, MIN_ALPHA)
    return _finite_start((schedule.sigma / alpha)[::-1], t[::-1], schedule)[::-1]


def _finite_start(ratio: Float64, t: Float64, schedule: NoiseSchedule) -> Float64:
    """The levels ρ (N,) of times t, falling, with a finite ρ where α = 0.

    That is diffusers' 1/MIN_ALPHA = 4,096, or `MIN_FIRST_RATIO` times the next level if that is higher: linear and
    sigmoid schedules reach ρ = 15,000 one timestep earlier, and no step leads from a level up to a noisier one.
    """
    if not schedule.has_zero_terminal_snr or t[0] < schedule.timesteps - 1:
        return ratio
    first = 1 / MIN_ALPHA if len(ratio) < 2 else max(1 / MIN_ALPHA, MIN_FIRST_RATIO * ratio[1])
    return np.concatenate([[first], ratio[1:]])


def _time_of(ratio: Float64, table: Float64) -> Float64:
    """The time of each value of ρ, between the timesteps on a logarithmic scale."""
    return np.asarray(np.interp(np.log(ratio), np.log(table), np.arange(len(table))), dtype=np.float64)


def _check_first(first: int, total: int, steps: int, offset: int) -> None:
    if first > total - 1:
        raise PlanError(f"steps = {steps} with steps_offset = {offset} starts at {first}, past the last {total - 1}")
