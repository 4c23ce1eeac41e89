"""Serving a model's name only if no other worker serves another model under it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from denoised.jobs.store.models.model_claims import DONE, ModelClaim
from denoised.jobs.store.store import Store
from denoised.worker.errors import ModelConflict

log = logging.getLogger("denoised.worker")

POLL_SECONDS = 0.25


@dataclass
class Switch:
    """On the way to another digest of a model.

    phase: of this worker; answer: to its last step, see `ModelClaims.switch`.
    """

    digest: str
    phase: str
    answer: str = ""


class ModelNames:
    """A worker's claims on the names of its models (`jobs.store.models.model_claims`).

    worker: its name.
    digests: of its models, by name.
    lease: seconds that a claim lasts unless it is renewed.
    """

    def __init__(self, store: Store, worker: str, digests: Mapping[str, str], lease: float) -> None:
        self._claims = store.claims
        self._worker = worker
        self._digests = dict(digests)
        self._lease = lease
        self._lock = threading.Lock()  # guards the digests, and those below
        self._switches: dict[str, Switch] = {}

    def acquire(self, stopping: threading.Event) -> bool:
        """Claim the names. The claims of a worker that was killed are waited for: they end with its lease.

        False when this worker is asked to stop meanwhile.

        Raises:
            ModelConflict: when a live worker serves another model under one of them.
        """
        first: dict[str, ModelClaim] = {}  # by worker
        while (other := self._claim()) is not None:
            if other.worker not in first:
                log.info("waiting for another worker", extra={"other": other.worker, "model": other.model})
            if other.expires_at > first.setdefault(other.worker, other).expires_at:  # it was renewed
                raise self._conflict(other)
            if stopping.wait(POLL_SECONDS):
                return False
        return True

    def renew(self) -> None:
        """Renew the claims.

        Raises:
            ModelConflict: when they had expired, and another worker serves another model under one of the names.
        """
        with self._lock:
            switches, held = dict(self._switches), dict(self._digests)
        for name, switch in switches.items():
            switch.answer = self._claims.switch(name, self._worker, switch.digest, switch.phase, self._lease)
            held.pop(name, None)
        if held:
            other = self._claims.claim(self._worker, held, self._lease)
            if other is not None and self._digests.get(other.model) == held[other.model]:
                raise self._conflict(other)

    # Changes by the thread that loads models

    def add(self, model: str, digest: str) -> ModelClaim | None:
        """Claim one more model. Returns the claim of another worker that serves it with other files."""
        other = self._claims.claim(self._worker, {model: digest}, self._lease)
        if other is None:
            with self._lock:
                self._digests[model] = digest
        return other

    def switch(self, model: str, digest: str, *, drained: bool) -> str:
        """A step toward another digest of a model, repeated by `renew`: see `ModelClaims.switch`."""
        switch = Switch(digest, "drained" if drained else "ready")
        with self._lock:
            self._switches[model] = switch
        switch.answer = self._claims.switch(model, self._worker, digest, switch.phase, self._lease)
        if switch.answer == DONE:
            with self._lock:
                self._digests[model] = digest
                del self._switches[model]
        return switch.answer

    def keep(self, model: str) -> None:
        """Give up a switch: the model stays as it is."""
        with self._lock:
            self._switches.pop(model, None)

    def drop(self, model: str) -> None:
        """Give up the claim on a model."""
        with self._lock:
            self._switches.pop(model, None)
            digest = self._digests.pop(model, None)
        if digest is not None:
            self._claims.release(self._worker, {model: digest})

    def shared(self) -> frozenset[str]:
        """The models that other live workers serve, too."""
        return self._claims.shared(dict(self._digests))

    def release(self) -> None:
        """Give up the claims."""
        self._claims.release(self._worker, dict(self._digests))

    def _claim(self) -> ModelClaim | None:
        return self._claims.claim(self._worker, dict(self._digests), self._lease)

    def _conflict(self, other: ModelClaim) -> ModelConflict:
        own = self._digests[other.model]
        return ModelConflict(
            f"{other.model} is served by {other.worker} with other files (digest {other.digest}; here {own}): "
            "rename this folder, or stop the other worker first"
        )
