"""The samplers by name: the noise levels that each visits, and the rows of its plan there.

The rows are functions in `singlestep`, `multistep`, `langevin` and `distilled`, next to this file. A new
sampler is one more function and one more line of `SAMPLERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from denoised.model.diffusion.distilled import (
    consistency_levels,
    consistency_rows,
    distilled_levels,
    lcm_rows,
    tcd_rows,
)
from denoised.model.diffusion.grids import (
    VARIANCES,
    Grid,
    Levels,
    capped_ratio_levels,
    capped_timesteps,
    discrete_levels,
    midpoint_levels,
    ratio_levels,
    solver_levels,
    solver_timesteps,
)
from denoised.model.diffusion.langevin import LANGEVIN_STEPS, langevin_rows, pc_rows
from denoised.model.diffusion.multistep import (
    dpmpp_2m_rows,
    dpmpp_2m_sde_rows,
    dpmpp_3m_rows,
    lms_rows,
    plms_rows,
    unipc_rows,
)
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan, Row
from denoised.model.diffusion.singlestep import (
    ddim_rows,
    ddpm_rows,
    dpm_2_rows,
    dpmpp_sde_rows,
    euler_a_rows,
    euler_rows,
    heun_rows,
)
from denoised.model.errors import PlanError


@dataclass(frozen=True)
class Sampler:
    """What a sampler is made of.

    Attributes:
        levels: from a schedule, the number of steps and a grid to the noise levels it visits.
        rows: from these levels, the schedule, the grid and η to the rows of its plan.
        takes_eta: whether η changes it.
        stages: evaluations in a step; the last step is always one evaluation.
        extra: evaluations besides those of the steps, in a run of more than one step.
    """

    levels: Callable[[NoiseSchedule, int, Grid], Levels]
    rows: Callable[[Levels, NoiseSchedule, Grid, float], list[Row]]
    takes_eta: bool = False
    stages: int = 1
    extra: int = 0

    @property
    def levels_per_step(self) -> int:
        """How many of its levels a step but the last has."""
        return 2 if self.levels is midpoint_levels else 1

    @property
    def takes_spacing(self) -> bool:
        """Whether a request chooses its levels; those of a distilled model are part of the model."""
        return self.levels not in (distilled_levels, consistency_levels)

    def visited_timesteps(self, schedule: NoiseSchedule, grid: Grid) -> int:
        """How many timesteps, counted from 0, its levels are chosen from; all of them if `steps` is larger."""
        if self.levels is solver_levels:
            return solver_timesteps(schedule, grid)
        if self.levels in (capped_ratio_levels, midpoint_levels):
            return capped_timesteps(schedule, grid)
        return schedule.timesteps


def _ddpm_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    return discrete_levels(schedule, steps, grid, end_alpha_one=True)


def _ddim_levels(schedule: NoiseSchedule, steps: int, grid: Grid) -> Levels:
    return discrete_levels(schedule, steps, grid, end_alpha_one=grid.set_alpha_to_one)


def _ddpm_rows(levels: Levels, schedule: NoiseSchedule, grid: Grid, eta: float) -> list[Row]:
    if grid.variance_type not in VARIANCES:
        known = ", ".join(VARIANCES)
        raise PlanError(f"variance_type = {grid.variance_type!r} is not supported by ddpm (supported: {known})")
    return ddpm_rows(levels, grid.variance_type)


def _ddim_rows(levels: Levels, schedule: NoiseSchedule, grid: Grid, eta: float) -> list[Row]:
    return ddim_rows(levels, eta)


def _lcm_rows(levels: Levels, schedule: NoiseSchedule, grid: Grid, eta: float) -> list[Row]:
    return lcm_rows(levels, grid.timestep_scaling)


def _tcd_rows(levels: Levels, schedule: NoiseSchedule, grid: Grid, eta: float) -> list[Row]:
    return tcd_rows(levels, schedule, gamma=eta)


CONSISTENCY = "consistency"
SAMPLERS = {
    # Ho et al. 2020 (arXiv:2006.11239); Song et al. 2020 (arXiv:2010.02502)
    "ddpm":         Sampler(_ddpm_levels,        _ddpm_rows),
    "ddim":         Sampler(_ddim_levels,        _ddim_rows, takes_eta=True),
    # Karras et al. 2022 (arXiv:2206.00364); DPM-Solver-2 of Lu et al. 2022 (arXiv:2206.00927)
    "euler":        Sampler(ratio_levels,        lambda levels, *_: euler_rows(levels)),
    "euler_a":      Sampler(ratio_levels,        lambda levels, *_: euler_a_rows(levels)),
    "heun":         Sampler(capped_ratio_levels, lambda levels, *_: heun_rows(levels), stages=2),
    "dpm_2":        Sampler(midpoint_levels,     lambda levels, *_: dpm_2_rows(levels), stages=2),
    # DPM-Solver++, Lu et al. 2022 (arXiv:2211.01095)
    "dpmpp_2m":     Sampler(solver_levels,       lambda levels, *_: dpmpp_2m_rows(levels)),
    "dpmpp_2m_sde": Sampler(solver_levels,       lambda levels, *_: dpmpp_2m_sde_rows(levels)),
    "dpmpp_3m":     Sampler(solver_levels,       lambda levels, *_: dpmpp_3m_rows(levels)),
    "dpmpp_sde":    Sampler(midpoint_levels,     lambda levels, *_: dpmpp_sde_rows(levels), stages=2),
    # Liu et al. 2022 (arXiv:2202.09778); UniPC, Zhao et al. 2023 (arXiv:2302.04867), of orders p + 1 = 3 and 4
    "lms":          Sampler(ratio_levels,        lambda levels, *_: lms_rows(levels)),
    "plms":         Sampler(_ddim_levels,        lambda levels, *_: plms_rows(levels), extra=1),
    "unipc":        Sampler(solver_levels,       lambda levels, *_: unipc_rows(levels, 2)),
    "unipc_3":      Sampler(solver_levels,       lambda levels, *_: unipc_rows(levels, 3)),
    # Song & Ermon 2019 (arXiv:1907.05600); Song et al. 2021 (arXiv:2011.13456)
    "langevin":     Sampler(ratio_levels,        lambda levels, *_: langevin_rows(levels), stages=LANGEVIN_STEPS),
    "pc":           Sampler(ratio_levels,        lambda levels, *_: pc_rows(levels), stages=2),
    # For distilled models: Luo et al. 2023 (arXiv:2310.04378); Zheng et al. 2024 (arXiv:2402.19159), whose γ is η
    "lcm":          Sampler(distilled_levels,    _lcm_rows),
    "tcd":          Sampler(distilled_levels,    _tcd_rows, takes_eta=True),
    # For weights of `denoised tune-consistency`: Song et al. 2023 (arXiv:2303.01469)
    CONSISTENCY:    Sampler(consistency_levels,  lambda levels, *_: consistency_rows(levels)),
}  # fmt: skip


def offered_samplers(grid: Grid) -> list[str]:
    """The samplers that make sense for a model's weights: of a consistency model the one that jumps, else all others.

    x̂_0 of a consistency model is the end of a trajectory. Solvers need the mean of all pictures that x may be.
    """
    return [name for name in SAMPLERS if (name == CONSISTENCY) == bool(grid.consistency_levels)]


def compile_plan(
    sampler: str, schedule: NoiseSchedule, steps: int, grid: Grid, eta: float = 0.0, skipped_steps: int = 0
) -> Plan:
    """The plan of a sampler by name.

    steps: 1 … T; eta: 0 … 1, the share of DDPM's noise that DDIM adds, or γ of TCD.
    skipped_steps: 0 … steps, the first steps that are left out. Multistep samplers begin at the first step that is left
        with a single estimate, as at the start of every run.

    Raises:
        PlanError: for an unknown sampler, or steps, eta or a grid outside the limits.
    """
    if sampler not in SAMPLERS:
        raise PlanError(f"sampler = {sampler!r} is not offered (offered: {', '.join(SAMPLERS)})")
    if not 0.0 <= eta <= 1.0:
        raise PlanError(f"eta = {eta} is outside 0 … 1")
    if not 0 <= skipped_steps <= steps:
        raise PlanError(f"skipped_steps = {skipped_steps} is outside 0 … {steps}")
    recipe = SAMPLERS[sampler]
    levels = recipe.levels(schedule, steps, grid)
    if skipped_steps == steps:
        return Plan.empty(sampler)
    if skipped_steps:
        levels = levels.without_first(skipped_steps * recipe.levels_per_step)
    return Plan.from_rows(sampler, levels, recipe.rows(levels, schedule, grid, eta))
