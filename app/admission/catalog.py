"""Which models live workers serve now; read from Redis at most once a second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from denoised.command_line.rejected_values import describe_error
from denoised.jobs.errors import RecordError
from denoised.jobs.format import UnreadableLog
from denoised.jobs.store.store import Store
from denoised.jobs.worker_report import WorkerReport
from denoised.model.serving.card import ModelCard

CACHE_SECONDS = 1.0


@dataclass(frozen=True)
class Fleet:
    """The live workers at one moment.

    Attributes:
        read_at: the moment, by `time.monotonic`.
        workers: their reports, by name.
        cards: one per served model; the first is the default.
        known: the name of every model that was ever served.
    """

    read_at: float
    workers: Sequence[WorkerReport]
    cards: Sequence[ModelCard]
    known: Sequence[str]

    @classmethod
    def read(cls, store: Store, unreadable: UnreadableLog) -> Fleet:
        """A card that this version cannot read is skipped."""
        workers = store.workers.live()
        cards: dict[str, ModelCard] = {}
        for worker in workers:
            for card in worker.models:
                if (read := _read_card(worker.name, card, unreadable)) is not None:
                    cards[read.name] = offered_by_both(cards[read.name], read) if read.name in cards else read
        return cls(time.monotonic(), workers, list(cards.values()), store.workers.known_models())


def _read_card(worker: str, card: dict[str, Any], unreadable: UnreadableLog) -> ModelCard | None:
    try:
        return ModelCard(**card)
    except ValidationError as error:
        problem = error.errors()[0]
        given = f"{problem['input']!r:.60}"
        reason = f"{'.'.join(map(str, problem['loc']))}: {describe_error(problem, given)}"
        unreadable.skip("card", f"{worker}/{card['name']}", RecordError(reason))
        return None


def offered_by_both(card: ModelCard, other: ModelCard) -> ModelCard:
    """The card of a model that several workers serve: any of them may get a job, so all must have its adapters."""
    loras = [lora for lora in card.loras if lora in other.loras]
    controls = [control for control in card.controls if control in other.controls]
    if loras == card.loras and controls == card.controls:
        return card
    return card.model_copy(update={"loras": loras, "controls": controls})


class Catalog:
    """The reports of workers, cached for CACHE_SECONDS. Thread-safe; at worst, two threads read at once.

    Raises:
        StoreUnavailable: from every method, when Redis does not answer in time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unreadable = UnreadableLog()
        self._fleet = Fleet(float("-inf"), (), (), ())

    def fleet(self) -> Fleet:
        """The current fleet; an empty one is not cached."""
        fleet = self._fleet
        if time.monotonic() - fleet.read_at > CACHE_SECONDS or not fleet.workers:
            fleet = self._fleet = Fleet.read(self._store, self._unreadable)
        return fleet

    def workers(self) -> Sequence[WorkerReport]:
        """The reports of live workers, by name."""
        return self.fleet().workers

    def cards(self) -> Sequence[ModelCard]:
        """One card per model; the first is the default."""
        return self.fleet().cards

    def known(self) -> Sequence[str]:
        """Every model that was ever served here."""
        return self.fleet().known

    def listing(self) -> list[dict[str, Any]]:
        """The body of `GET /models`."""
        fleet = self.fleet()
        served = [(card["name"], card.get("digest", "")) for worker in fleet.workers for card in worker.models]
        return [{**card.model_dump(), "workers": served.count((card.name, card.digest))} for card in fleet.cards]
