"""The plans of a model, compiled when a request asks for them and cached."""

from __future__ import annotations

from functools import lru_cache

from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.samplers import compile_plan

CACHED_PLANS = 256


class PlanCompiler:
    """Compiles plans on one noise schedule.

    Attributes:
        schedule: The noise levels of training.
        grid: Which of them a request visits if it says nothing else.
    """

    def __init__(self, schedule: NoiseSchedule, grid: Grid) -> None:
        self.schedule = schedule
        self.grid = grid
        self.compile = lru_cache(maxsize=CACHED_PLANS)(self._compile)

    def _compile(self, sampler: str, steps: int, eta: float, levels: LevelChoice) -> Plan:
        return compile_plan(sampler, self.schedule, steps, levels.of(self.grid), eta, levels.skipped_steps)
