"""Which noise levels a sampler visits: the fields of scheduler_config.json, as functions.

Three families of diffusers thin out the same T timesteps differently under the same word
("leading", "trailing", "linspace"; Lin et al. 2023, arXiv:2305.08891, table 2), and a model's
picture under a seed depends on it. The level after a timestep is always the next entry of
the list, never t − T//N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from denoised.model.diffusion.noise import Float64, NoiseSchedule
from denoised.model.errors import PlanError

SPACINGS = ("leading", "trailing", "linspace")
VARIANCES = ("fixed_small", "fixed_large", "learned_range", "learned")
KARRAS_RHO = 7.0
STEEP, LEVELLED = 200.0, 20.0  # σ/α: schedules that go beyond the first are begun at the second by two-stage solvers
LEAST_ALPHA = 2.0**-12  # for the samplers on σ/α, where the schedule ends in ᾱ = 0; diffusers' ᾱ = 2^−24


@dataclass(frozen=True)
class Grid:
    """How a model's timesteps are thinned out; the fields of scheduler_config.json.

    karras: noise levels spaced as in Karras et al. 2022, for the samplers on σ/α.
    lambda_min: the least λ = log(α/σ) that the DPM-Solver family starts at.
    """

    spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    variance_type: str = "fixed_small"
    karras: bool = False
    lambda_min: float = -np.inf


@dataclass(frozen=True)
class Levels:
    """N noise levels and the end. t: (N,) in units of timesteps; alpha, sigma: (N + 1,) float64.

    start: what unit noise is multiplied with to become x_T.
    """

    t: Float64
    alpha: Float64
    sigma: Float64
    start: float = 1.0

    @property
    def steps(self) -> int:
        return len(self.t)

    def around(self, i: int) -> tuple[float, float, float, float]:
        """α, σ of level i and of the next."""
        return self.alpha[i], self.sigma[i], self.alpha[i + 1], self.sigma[i + 1]

    @property
    def ratio(self) -> Float64:
        """σ/α (N + 1,), the noise level of Karras et al. 2022."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> Float64:
        """λ = log(α/σ) (N + 1,) of Lu et al. 2022; +∞ at an end without noise."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)


def timesteps(total: int, steps: int, spacing: str = "leading", offset: int = 0) -> list[int]:
    """`steps` timesteps of 0 … total−1, strictly falling, as DDPM and DDIM thin them out.

    Raises:
        PlanError: when `steps` is not in 1 … total or the offset leads past the last timestep.
    """
    if not 1 <= steps <= total:
        raise PlanError(f"steps = {steps} is outside 1 … {total}")
    if spacing == "leading":
        ts = [i * (total // steps) + offset for i in reversed(range(steps))]
    elif spacing == "trailing":
        ts = [round(total - i * total / steps) - 1 for i in range(steps)]
    elif spacing == "linspace":
        ts = [round(t) for t in np.linspace(total - 1, 0, steps)]
    else:
        raise PlanError(f"timestep_spacing = {spacing!r} is not supported (supported: {', '.join(SPACINGS)})")
    _check_first(ts[0], total, steps, offset)
    return ts


def discrete_levels(schedule: NoiseSchedule, steps: int, grid: Grid, *, end_alpha_one: bool) -> Levels:
    """Levels of DDPM and DDIM: timesteps as they are, then ᾱ = 1 or that of timestep 0."""
    ts = timesteps(schedule.timesteps, steps, grid.spacing, grid.steps_offset)
    end_alpha, end_sigma = (1.0, 0.0) if end_alpha_one else (float(schedule.alpha[0]), float(schedule.sigma[0]))
    return Levels(
        t=np.asarray(ts, dtype=np.float64),
        alpha=np.append(schedule.alpha[ts], end_alpha),
        sigma=np.append(schedule.sigma[ts], end_sigma),
    )


def ratio_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """Levels of the samplers on σ/α (Euler, Heun): linspace falls between timesteps; the end is without noise.

    x_T is unit noise times σ_T, or times 1 with leading spacing, as diffusers has it.
    """
    if grid.spacing == "linspace" and 1 <= steps <= schedule.timesteps:
        t = np.linspace(schedule.timesteps - 1, 0, steps)
    else:
        t = np.asarray(timesteps(schedule.timesteps, steps, grid.spacing, grid.steps_offset), dtype=np.float64)
    table = _ratios(schedule)
    ratio = np.interp(t, np.arange(schedule.timesteps), table)
    if grid.karras:
        ratio = karras(ratio[-1], ratio[0], steps)
        t = _time_of(ratio, table)
    alpha = 1 / np.sqrt(1 + ratio**2)
    start = 1.0 if grid.spacing == "leading" else float(ratio[0] * alpha[0])
    return Levels(t, np.append(alpha, 1.0), np.append(ratio * alpha, 0.0), start)


def levelled_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """Those of `ratio_levels` for the two-stage solvers, which a steep beginning ruins.

    From ρ to ρ' Heun's correction multiplies what two estimates differ in with ρ/(2ρ'). Cosine schedules go
    up to ρ = 20,000, where nothing of the picture is left: there the timesteps above ρ = 20 are not counted,
    unless more steps are asked for than the others are.
    """
    ratio = _ratios(schedule)
    kept = int(np.count_nonzero(ratio <= LEVELLED))
    if ratio[-1] > STEEP and steps <= kept:
        schedule = NoiseSchedule(schedule.alpha[:kept], schedule.sigma[:kept])
    return ratio_levels(schedule, steps, grid)


def halved_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """Those of `levelled_levels`, and between each two of them √(ρ·ρ'): 2·N − 1 levels and the end."""
    whole = levelled_levels(schedule, steps, grid)
    middle = np.sqrt(whole.ratio[:-2] * whole.ratio[1:-1])
    ratio = np.zeros(2 * steps)
    ratio[0::2], ratio[1:-1:2] = whole.ratio[:-1], middle
    t = np.zeros(2 * steps - 1)
    t[0::2], t[1::2] = whole.t, _time_of(middle, _ratios(schedule))
    alpha = 1 / np.sqrt(1 + ratio**2)
    return Levels(t, alpha, ratio * alpha, whole.start)


def solver_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    """Levels of the DPM-Solver family: one timestep more is counted and the lowest left out; ends without noise.

    Where that grid would repeat a timestep (steps close to T), it is that of DDIM. Timesteps of
    more noise than `grid.lambda_min` are left out of the counting.
    """
    table = _ratios(schedule)
    total, offset = int(np.count_nonzero(-np.log(table) >= grid.lambda_min)), grid.steps_offset
    ts = timesteps(total, steps, grid.spacing, offset if grid.spacing != "leading" else 0)
    if grid.spacing == "linspace":
        finer = [round(t) for t in np.linspace(0, total - 1, steps + 1)][::-1][:-1]
        ts = finer if len(set(finer)) == steps else ts
    elif grid.spacing == "leading":
        stride = total // (steps + 1)
        ts = [i * stride for i in range(steps, 0, -1)] if stride else ts
        ts = [t + offset for t in ts]
        _check_first(ts[0], total, steps, offset)
    t = np.asarray(ts, dtype=np.float64)
    ratio = table[ts]
    if grid.karras:
        ratio = karras(table[0], table[-1], steps)
        t = _time_of(ratio, table)
    alpha = 1 / np.sqrt(1 + ratio**2)
    return Levels(t, np.append(alpha, 1.0), np.append(ratio * alpha, 0.0))


def karras(lowest: float, highest: float, steps: int) -> Float64:
    """`steps` values of σ/α, falling (Karras et al. 2022, arXiv:2206.00364, eq. 5, ρ = 7)."""
    ramp = np.linspace(0, 1, steps)
    low, high = lowest ** (1 / KARRAS_RHO), highest ** (1 / KARRAS_RHO)
    return np.asarray((high + ramp * (low - high)) ** KARRAS_RHO, dtype=np.float64)


def _ratios(schedule: NoiseSchedule) -> Float64:
    """σ/α of every timestep (T,), finite also where the schedule ends in α = 0."""
    return np.asarray(schedule.sigma / np.where(schedule.alpha > 0, schedule.alpha, LEAST_ALPHA))


def _time_of(ratio: Float64, table: Float64) -> Float64:
    """Where between the timesteps a value of σ/α lies, on a logarithmic scale."""
    return np.asarray(np.interp(np.log(ratio), np.log(table), np.arange(len(table))), dtype=np.float64)


def _check_first(first: int, total: int, steps: int, offset: int) -> None:
    if first > total - 1:
        raise PlanError(f"steps = {steps} with steps_offset = {offset} starts at {first}, past the last {total - 1}")
