"""The plans of a model, compiled when a request asks for them and cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from denoised.model.checkpoints.card_file import LearnedLevels, learned_sigmas
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.level_choice import LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan, offered_samplers
from denoised.model.errors import PlanError

CACHED_PLANS = 256
LEARNED = "learned"


class PlanCompiler:
    """Compiles plans on one noise schedule.

    Attributes:
        schedule: The noise levels of training.
        grid: Which of them a request visits if it says nothing else.
        learned: Those that were fitted to the model, for the spacing `learned`.
    """

    def __init__(self, schedule: NoiseSchedule, grid: Grid, learned: Sequence[LearnedLevels] = ()) -> None:
        self.schedule = schedule
        self.grid = grid
        self.learned = tuple(learned)
        self.compile = lru_cache(maxsize=CACHED_PLANS)(self._compile)

    def _compile(self, sampler: str, steps: int, eta: float, levels: LevelChoice) -> Plan:
        if sampler in SAMPLERS and sampler not in (offered := offered_samplers(self.grid)):
            raise PlanError(f"sampler = {sampler!r} is not for these weights (offered: {', '.join(offered)})")
        if levels.spacing == LEARNED:
            levels = replace(levels, spacing=None, sigmas=self._learned_sigmas(sampler, steps))
        return compile_plan(sampler, self.schedule, steps, levels.of(self.grid), eta, levels.skipped_steps)

    def _learned_sigmas(self, sampler: str, steps: int) -> tuple[float, ...]:
        sigmas = learned_sigmas(self.learned, sampler, steps)
        if sigmas is None:
            known = ", ".join(f"{each.sampler} in {len(each.sigmas)} steps" for each in self.learned) or "none"
            raise PlanError(f"spacing = 'learned' has no levels for {sampler} in {steps} steps (levels for: {known})")
        return tuple(sigmas)
