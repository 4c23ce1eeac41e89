"""Which models live workers serve now; asked of Redis at most once a second."""

from __future__ import annotations

import time
from typing import Any

from model.card import ModelCard
from worker.job import WorkerReport
from worker.store import Store

FRESH_SECONDS = 1.0


class Catalog:
    """Workers' reports, remembered for a moment. Thread-safe: at worst two threads ask at once.

    Raises:
        StoreUnavailable: when Redis does not answer in time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reports: list[WorkerReport] = []
        self._asked = float("-inf")

    def workers(self) -> list[WorkerReport]:
        """Reports of live workers, by name."""
        if time.monotonic() - self._asked > FRESH_SECONDS or not self._reports:
            self._reports = self._store.workers()
            self._asked = time.monotonic()
        return self._reports

    def cards(self) -> list[ModelCard]:
        """One card a model; the first is the default."""
        cards: dict[str, ModelCard] = {}
        for worker in self.workers():
            for card in worker.models:
                cards.setdefault(card["name"], ModelCard(**card))
        return list(cards.values())

    def listing(self) -> list[dict[str, Any]]:
        """`GET /models`."""
        served = [card["name"] for worker in self.workers() for card in worker.models]
        return [{**card.model_dump(), "workers": served.count(card.name)} for card in self.cards()]

    def known(self) -> list[str]:
        """Every model that was ever served here."""
        return self._store.known_models()
