"""Tickets: short-lived stand-ins for an API key, valid for one use."""

from __future__ import annotations

from typing import cast

from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.store_connection import StoreConnection


class Tickets:
    """Every method raises StoreUnavailable when Redis does not answer in time."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection

    def issue(self, ticket: str, owner: str, ttl: int) -> None:
        """Let a ticket stand for a caller, once, for `ttl` seconds."""
        with self._connection.reachable():
            self._connection.client.set(keys.ticket(ticket), owner, ex=ttl)

    def redeem(self, ticket: str) -> str | None:
        """The caller that a ticket stands for, None for an unknown one; afterward the ticket is void."""
        with self._connection.reachable():
            owner = cast("bytes | None", self._connection.client.getdel(keys.ticket(ticket)))
        return owner.decode(errors="replace") if owner is not None else None
