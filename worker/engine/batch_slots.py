"""How many images a turn may hold: of each model, and fewer where memory would run out. Imports no torch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

MAX_LOWERED = 256  # keys for which fewer slots are remembered


class BatchSlots:
    """The slots of a turn by model and, where memory has run out, by batch key.

    default: of the models that `by_model` does not name.
    """

    def __init__(self, default: int, by_model: Mapping[str, int] | None = None) -> None:
        self.default = default
        self._by_model = dict(by_model or {})
        self._lowered: dict[Hashable, int] = {}

    def of_model(self, model: str) -> int:
        """Of a turn of this model at its own size."""
        return self._by_model.get(model, self.default)

    def replace(self, model: str, images: int) -> None:
        """The model has been replaced: a turn of it holds so many images, wherever memory ran out before."""
        self._by_model[model] = images
        self._lowered.clear()

    def of_key(self, model: str, key: Hashable) -> int:
        """Of a turn of the members of one key."""
        return min(self.of_model(model), self._lowered.get(key, self.of_model(model)))

    def lower(self, key: Hashable, images: int) -> None:
        """From now on, a turn holds at most so many images of this key, at least 1."""
        if key not in self._lowered and len(self._lowered) >= MAX_LOWERED:
            self._lowered.clear()
        self._lowered[key] = max(1, min(images, self._lowered.get(key, images)))
