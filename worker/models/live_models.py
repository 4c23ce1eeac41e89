"""The models that a worker has in memory, which change while it serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from denoised.model.serving.protocol import ServedModel


class LiveModels(Mapping[str, ServedModel]):
    """A mapping that one thread changes and others read. An iteration sees the models of the moment it began."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = dict(models)

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def put(self, name: str, model: ServedModel | None) -> None:
        """Add or replace a model; None removes it."""
        others = {**self._models}
        if model is None:
            others.pop(name, None)
        else:
            others[name] = model
        self._models = others
