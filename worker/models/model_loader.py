"""Loads and removes models while the worker serves, in a thread of its own.

It compares the folders that should be served, and the orders of operators, with what is served, about once a second.
A model that cannot be loaded changes nothing: the one that is served stays.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from denoised.jobs.errors import StoreError
from denoised.jobs.store.models.model_claims import DONE, DRAIN, ModelClaim
from denoised.jobs.store.models.model_list import NO_ORDER, StoredOrder
from denoised.jobs.store.store import Store
from denoised.model.errors import CheckpointError, ModelError
from denoised.model.serving.card import ModelCard
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.leases import Delivery
from denoised.worker.delivery.unstarted_jobs import end_unstarted
from denoised.worker.error_kinds import is_out_of_memory
from denoised.worker.errors import ModelRemoved
from denoised.worker.models.model_changes import ModelChanges
from denoised.worker.models.model_entry import ModelEntry
from denoised.worker.models.model_folders import FoundModel, ModelFolders
from denoised.worker.models.model_memory import ModelMemory
from denoised.worker.models.ready_model import ReadyModel

log = logging.getLogger("denoised.worker")

ROUND_SECONDS = 1.0
MAX_FAILED = 100  # waiting jobs of a removed model that fail in one round


@dataclass(frozen=True)
class Loading:
    """What a worker needs to load models while it serves.

    Attributes:
        load: Loads the model of a folder under a name, measures and checks it; raises ModelError.
        weigh: The bytes of a folder's weights; raises ModelError.
        budget: Bytes of weights in memory; None: all models stay.
        prepare: Called once, in the thread that loads.
    """

    folders: ModelFolders
    load: Callable[[str, Path], ReadyModel]
    weigh: Callable[[Path], int] = lambda folder: 0
    budget: int | None = None
    prepare: Callable[[], None] = lambda: None


class Host(Protocol):
    """The worker around the loader."""

    def claim(self, model: str, digest: str) -> ModelClaim | None:
        """Claim the name of one more model; the claim of another worker that serves other files, if there is one."""

    def switch(self, model: str, digest: str, *, drained: bool) -> str:
        """A step toward another digest (`worker.delivery.model_names`)."""

    def keep(self, model: str) -> None:
        """Give up a switch."""

    def open_queue(self, model: str) -> None:
        """Take jobs of one more model."""

    def close_queue(self, model: str) -> None:
        """Take no more jobs of a model, and give up its name."""

    def take(self, model: str) -> Delivery | None:
        """The next waiting job of any model."""

    def waits(self, model: str) -> bool:
        """Whether jobs wait for a model."""

    def is_used(self, model: str) -> bool:
        """Whether a job holds a model."""

    def used_at(self, model: str) -> float:
        """When a job of a model came last, by `time.monotonic`; 0 if none ever did."""


class ModelLoader(threading.Thread):
    """models: those that were loaded before the worker began to serve, and those in memory from then on."""

    def __init__(
        self,
        loading: Loading,
        models: Mapping[str, ServedModel],
        changes: ModelChanges,
        store: Store,
        host: Host,
        round_seconds: float = ROUND_SECONDS,
    ) -> None:
        super().__init__(name="model loader", daemon=True)
        self._loading = loading
        self._models = models
        self._changes = changes
        self._store = store
        self._host = host
        self._round_seconds = round_seconds
        self._stopped = threading.Event()
        self._memory = ModelMemory(loading.budget, models, changes, host.is_used, host.used_at, host.waits)
        self._entries = {
            name: ModelEntry(FoundModel(name, Path()), card=model.card, state="serving", loaded_at=time.monotonic())
            for name, model in models.items()
        }

    def stop(self) -> None:
        self._stopped.set()

    def states(self) -> list[dict[str, Any]]:
        """All models that should be served, for the worker's report. Thread-safe."""
        return [entry.describe() for entry in list(self._entries.values())]

    def cards(self) -> list[ModelCard]:
        """Of all models that take jobs, those that are not in memory included. Thread-safe."""
        return [entry.card for entry in list(self._entries.values()) if entry.card is not None]

    def run(self) -> None:
        self._loading.prepare()
        while not self._stopped.is_set():
            try:
                self.round()
            except StoreError as error:
                log.warning("models wait for Redis", extra={"reason": str(error)})
            except Exception:
                log.exception("loading models failed")
            self._stopped.wait(self._round_seconds)

    def round(self) -> None:
        """Compare what should be served with what is, and go one step."""
        orders, found = self._store.workers.orders.read(), self._loading.folders.scan()
        removed = {name for name, order in orders.items() if order.removed}
        settling = self._loading.folders.unsettled - removed
        for name in [name for name in self._entries if name in removed or name not in {*found, *settling}]:
            self._remove(name, ordered=name in removed)
        for name, each in found.items():
            self._adopt(each, orders.get(name, NO_ORDER))
        for name, each in found.items():
            if name not in removed and not self._stopped.is_set():
                self._want(each, orders.get(name, NO_ORDER))
                entry = self._entries[name]
                if entry.next is not None:
                    self._offer(entry, entry.next)
        self._memory.note_use(self._entries.values())
        wanted = self._memory.wanted(self._entries.values())
        if wanted is not None and self._load(wanted) and wanted.next is not None:
            self._offer(wanted, wanted.next)
        self._memory.end_round(self._entries.values())
        for name in removed - self._entries.keys():
            self._fail_waiting(name)

    # One step of a model

    def _adopt(self, found: FoundModel, order: StoredOrder) -> None:
        """Note what was read when the worker started."""
        entry = self._entries.get(found.name)
        if entry is not None and entry.version is None and entry.card is not None:
            entry.found, entry.version = found, (found.fingerprint, order.generation)
            entry.bytes = self._weigh(entry)

    def _want(self, found: FoundModel, order: StoredOrder) -> None:
        """Read a folder that is new, or that has changed."""
        version = found.fingerprint, order.generation
        entry = self._entries.get(found.name)
        if entry is None:
            entry = self._entries[found.name] = ModelEntry(found)
        if entry.state == "draining" and entry.next is None:  # it was removed, and is back before it was gone
            self._changes.resume(found.name)
            entry.state = "serving"
        if entry.version == version:
            return
        entry.found = found
        if self._load(entry):
            entry.version = version  # from here on, the report says that the order was followed

    def _weigh(self, entry: ModelEntry) -> int:
        if self._loading.budget is None:
            return 0
        try:
            return self._loading.weigh(entry.found.folder)
        except (ModelError, OSError):
            return 0  # the loading says what is wrong

    def _load(self, entry: ModelEntry) -> bool:
        """Load a model, or make room for it first. Returns whether it was loaded, or refused."""
        name, is_here = entry.name, entry.name in self._models
        entry.state = entry.state if entry.card is not None else "loading"
        entry.bytes = self._weigh(entry)
        if not self._memory.has_room(self._entries.values(), entry) and self._memory.refusal(entry) is None:
            return False
        log.info("loading model", extra={"model": name})
        self._discard(entry)
        started = time.monotonic()
        try:
            if (refusal := self._memory.refusal(entry)) is not None:
                raise CheckpointError(f"{entry.found.folder}: {refusal}")
            ready = self._loading.load(name, entry.found.folder)
        except Exception as error:
            if not isinstance(error, ModelError | OSError) and not is_out_of_memory(error):
                log.exception("a model could not be loaded", extra={"model": name})
            entry.reason = str(error) or type(error).__name__
            entry.state = "failed" if not is_here else "serving"
            log.warning("model refused", extra={"model": name, "reason": entry.reason})
            return True
        entry.reason = ""
        entry.loaded_at = entry.used_at = time.monotonic()
        entry.load_seconds = entry.loaded_at - started
        if is_here and ready.model.card == entry.card:
            log.info("model unchanged", extra={"model": name, "digest": ready.model.card.digest})
            return True
        entry.next, entry.state = ready, "loading"
        return True

    def _offer(self, entry: ModelEntry, ready: ReadyModel) -> None:
        """Serve a loaded model as soon as its name, and the running jobs, allow it."""
        name, digest = entry.found.name, ready.model.card.digest
        if entry.card is None:
            other = self._host.claim(name, digest)
            if other is not None:
                self._wait(entry, f"{other.worker} serves other files (digest {other.digest}; here {digest})")
                return
            self._host.open_queue(name)
        elif not self._is_drained(entry, name, digest):
            return
        if self._changes.make(name, ready):
            entry.card, entry.next, entry.state, entry.reason = ready.model.card, None, "serving", ""
            log.info("serving model", extra={"model": name, "digest": digest})
            gc.collect()

    def _is_drained(self, entry: ModelEntry, name: str, digest: str) -> bool:
        """Whether no job runs with the old weights any more, here and on the other workers that serve the model."""
        assert entry.card is not None
        drained = name in self._changes.drained or name not in self._models
        answer = (DONE if drained else DRAIN) if entry.card.digest == digest else ""
        answer = answer or self._host.switch(name, digest, drained=drained)
        if answer == DRAIN:
            self._changes.retire(name)
            entry.state, entry.reason = "draining", ""
        elif answer != DONE:
            self._changes.resume(name)
            self._wait(entry, f"{answer} has not loaded the same files (digest {digest})")
        return answer == DONE

    def _wait(self, entry: ModelEntry, reason: str) -> None:
        if entry.reason != reason:
            log.warning("model waits", extra={"model": entry.found.name, "reason": reason})
        entry.state, entry.reason = "waiting", reason

    def _discard(self, entry: ModelEntry) -> None:
        """Drop a loaded model that is not served yet."""
        if entry.next is not None:
            entry.next = None
            self._host.keep(entry.found.name)
            self._changes.resume(entry.found.name)

    def _remove(self, name: str, *, ordered: bool) -> None:
        """Serve a model no more, when its running jobs have ended. ordered: by an operator, for all workers."""
        entry = self._entries[name]
        if entry.card is not None:
            entry.next, entry.state = None, "draining"
            self._host.keep(name)
            self._changes.retire(name)
            in_memory = name in self._models
            if in_memory and (name not in self._changes.drained or not self._changes.make(name, None)):
                return
            self._changes.resume(name)
            self._host.close_queue(name)
        del self._entries[name]
        if ordered:
            self._store.workers.kept.forget([name])
        log.info("model removed", extra={"model": name})
        gc.collect()

    def _fail_waiting(self, name: str) -> None:
        """Fail the jobs that wait for a model that operators have removed."""
        for _ in range(MAX_FAILED):
            delivery = self._host.take(name)
            if delivery is None:
                return
            end_unstarted(self._store, delivery, ModelRemoved(f"the model {name} was removed by an operator"))
