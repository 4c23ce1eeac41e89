"""Which model a caller has chosen as its default, for APIs whose clients choose one once and then leave it out."""

from __future__ import annotations

import contextlib
from typing import cast

from denoised.jobs.errors import RecordError, StoreUnavailable
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.store_connection import StoreConnection

KEPT_SECONDS = 30 * 86_400  # after the last use
MAX_NAME = 200  # characters; longer values are damaged


class ModelChoices:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection

    def choose(self, owner: str, model: str) -> None:
        """Make a model a caller's default."""
        with self._connection.reachable():
            self._connection.client.set(keys.model_choice(owner), model, ex=KEPT_SECONDS)

    def chosen(self, owner: str) -> str | None:
        """The model that a caller has chosen; None if it has chosen none, or what is stored is damaged."""
        try:
            with self._connection.reachable():
                name = self._connection.client.getrange(keys.model_choice(owner), 0, 4 * MAX_NAME)
            text = cast(bytes, name).decode()
        except (RecordError, UnicodeDecodeError):
            return None  # damaged; the next choice replaces it
        if text:
            self._keep(owner)
        return text if 0 < len(text) <= MAX_NAME else None

    def _keep(self, owner: str) -> None:
        """Keep a choice that is used; a Redis that refuses writes lets it expire."""
        with contextlib.suppress(StoreUnavailable), self._connection.reachable():
            self._connection.client.expire(keys.model_choice(owner), KEPT_SECONDS)
