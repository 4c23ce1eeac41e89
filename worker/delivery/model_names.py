"""Serving a model's name only if no other worker serves another model under it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from denoised.jobs.store.model_claims import ModelClaim
from denoised.jobs.store.store import Store
from denoised.worker.errors import ModelConflict

log = logging.getLogger("denoised.worker")

POLL_SECONDS = 0.25


class ModelNames:
    """A worker's claims on the names of its models (`jobs.store.model_claims`).

    worker: its name.
    digests: of its models, by name.
    lease: seconds that a claim lasts unless it is renewed.
    """

    def __init__(self, store: Store, worker: str, digests: Mapping[str, str], lease: float) -> None:
        self._claims = store.claims
        self._worker = worker
        self._digests = digests
        self._lease = lease

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
        other = self._claim()
        if other is not None:
            raise self._conflict(other)

    def shared(self) -> frozenset[str]:
        """The models that other live workers serve, too."""
        return self._claims.shared(self._digests)

    def release(self) -> None:
        """Give up the claims."""
        self._claims.release(self._worker, self._digests)

    def _claim(self) -> ModelClaim | None:
        return self._claims.claim(self._worker, self._digests, self._lease)

    def _conflict(self, other: ModelClaim) -> ModelConflict:
        own = self._digests[other.model]
        return ModelConflict(
            f"{other.model} is served by {other.worker} with other files (digest {other.digest}; here {own}): "
            "rename this folder, or stop the other worker first"
        )
