"""A model that a worker should serve, and how far it is with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from denoised.model.serving.card import ModelCard
from denoised.worker.models.model_folders import FoundModel
from denoised.worker.models.ready_model import ReadyModel


@dataclass
class ModelEntry:
    """A model that should be served.

    Attributes:
        version: Of the folder, when it was read last.
        card: Of the model that is served; None before there is one.
        next: A loaded model that is not served yet.
        state: `loading`, `serving`, `draining` (its running jobs end before it is replaced or removed), `waiting` (for
            another worker), `unloading` (to make room), `unloaded` (until jobs wait for it) or `failed`.
        reason: Why it is not served, or why its folder's last change was refused.
        bytes: Of its weights.
        used_at: When a job held it last, by the loader's clock.
        loaded_at, load_seconds: When it was loaded, and how long that took.
    """

    found: FoundModel
    version: tuple[object, int] | None = None
    card: ModelCard | None = None
    next: ReadyModel | None = None
    state: str = "loading"
    reason: str = ""
    bytes: int = 0
    used_at: float = 0.0
    loaded_at: float = 0.0
    load_seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.found.name

    def describe(self) -> dict[str, Any]:
        """As worker reports have it."""
        return {
            "model": self.name,
            "state": self.state,
            "reason": self.reason,
            "digest": "" if self.card is None else self.card.digest,
            "generation": 0 if self.version is None else self.version[1],
        }
