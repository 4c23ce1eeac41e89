"""A model that is loaded, measured and checked, so that the engine can serve it from its next turn on."""

from __future__ import annotations

from dataclasses import dataclass

from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.canary import Canary


@dataclass(frozen=True)
class ReadyModel:
    """A model with what was found out about it.

    Attributes:
        slots: Images in one evaluation.
        canary: With which the device is checked; None if it cannot be.
    """

    model: ServedModel
    slots: int
    canary: Canary | None = None
