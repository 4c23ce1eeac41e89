"""What a request says about the noise levels that its plan visits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from denoised.model.diffusion.grids import SPACINGS, Grid
from denoised.model.diffusion.published_levels import PUBLISHED_LEVELS
from denoised.model.diffusion.spacings import RATIO_SPACINGS, RatioSpacing
from denoised.model.errors import PlanError


@dataclass(frozen=True)
class LevelChoice:
    """The levels that a request asks for. None leaves a choice to the model.

    Attributes:
        spacing: one of `SPACINGS`, for timesteps, or of `RATIO_SPACINGS` or `PUBLISHED_LEVELS`, for levels ρ
            between them.
        karras: True is the spacing "karras"; False is none of its levels.
        sigma_min, sigma_max, sigmas: see `RatioSpacing`.
        skipped_steps: how many of the first steps are left out; a run that starts from a picture does.
    """

    spacing: str | None = None
    karras: bool | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigmas: tuple[float, ...] | None = None
    skipped_steps: int = 0

    def of(self, grid: Grid) -> Grid:
        """The grid of a request on a model whose own grid is `grid`.

        Raises:
            PlanError: for an unknown spacing, or bounds of a spacing that has none.
        """
        name = self._ratio_spacing(grid)
        bounded = self.sigmas is not None or self.sigma_min is not None or self.sigma_max is not None
        if name is None and bounded and self.sigmas is None:
            raise PlanError("sigma_min and sigma_max need a spacing of levels, not of timesteps")
        spacing = self.spacing if self.spacing in SPACINGS else grid.spacing
        if name is None and self.sigmas is None:
            return replace(grid, spacing=str(spacing), ratio_spacing=None)
        own = RatioSpacing(name or "karras", self.sigma_min, self.sigma_max, self.sigmas)
        return replace(grid, spacing=str(spacing), ratio_spacing=own)

    def _ratio_spacing(self, grid: Grid) -> str | None:
        if self.karras:
            return "karras"
        if self.spacing in RATIO_SPACINGS or self.spacing in PUBLISHED_LEVELS:
            return self.spacing
        if self.spacing is not None and self.spacing not in SPACINGS:
            known = ", ".join((*SPACINGS, *RATIO_SPACINGS, *PUBLISHED_LEVELS))
            raise PlanError(f"spacing = {self.spacing!r} is not supported (supported: {known})")
        name = grid.ratio_spacing.name if grid.ratio_spacing is not None else None
        # A spacing of timesteps keeps a model's Karras levels, which `karras` turns off, and replaces all others.
        if name == "karras":
            return None if self.karras is False else name
        return name if self.spacing is None else None


MODELS_OWN = LevelChoice()
