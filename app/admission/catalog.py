"""Which models live workers serve now, and what is known of the others; read from Redis at most once a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from denoised.command_line.rejected_values import describe_error
from denoised.jobs.errors import RecordError
from denoised.jobs.format import UnreadableLog
from denoised.jobs.store.models.kept_models import KeptModel
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
        cards: one per model that takes jobs; the first is the default.
        known: the name of every model that was ever served.
        kept: what is known of those that no live worker serves, by name.
    """

    read_at: float
    workers: Sequence[WorkerReport]
    cards: Sequence[ModelCard]
    known: Sequence[str]
    kept: Mapping[str, KeptModel] = field(default_factory=dict)

    @property
    def served(self) -> set[str]:
        """The models that live workers serve."""
        return {card["name"] for worker in self.workers for card in worker.models}

    @property
    def pools(self) -> list[WorkerReport]:
        """The live workers, and for each model that none of them serves, the last that did."""
        return [*self.workers, *(each.report for each in self.kept.values())]

    @classmethod
    def read(cls, store: Store, unreadable: UnreadableLog, queue_without_worker: bool = False) -> Fleet:
        """A card that this version cannot read is skipped.

        queue_without_worker: whether models that no live worker serves take jobs.
        """
        workers, known = store.workers.live(), store.workers.known_models()
        served = {card["name"] for worker in workers for card in worker.models}
        kept = store.workers.kept.read(name for name in known if name not in served)
        cards: dict[str, ModelCard] = {}
        for worker in workers:
            for card in worker.models:
                if (found := _read_card(worker.name, card, unreadable)) is not None:
                    cards[found.name] = offered_by_both(cards[found.name], found) if found.name in cards else found
        for name, model in kept.items():
            last = _read_card(name, model.report.models[0], unreadable) if queue_without_worker else None
            if last is not None:
                cards[name] = last
        return cls(time.monotonic(), workers, list(cards.values()), known, kept)


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

    queue_without_worker: see `Fleet.read`.

    Raises:
        StoreUnavailable: from every method, when Redis does not answer in time.
    """

    def __init__(self, store: Store, queue_without_worker: bool = False) -> None:
        self._store = store
        self._queue_without_worker = queue_without_worker
        self._unreadable = UnreadableLog()
        self._fleet = Fleet(float("-inf"), (), (), ())

    def fleet(self) -> Fleet:
        """The current fleet; one without workers is not cached."""
        fleet = self._fleet
        if time.monotonic() - fleet.read_at > CACHE_SECONDS or not fleet.workers:
            fleet = self._fleet = Fleet.read(self._store, self._unreadable, self._queue_without_worker)
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
