"""Quotas and what is left of them: `GET /usage` and `GET /usage/keys`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from denoised.client.resource import Resource


@dataclass(frozen=True)
class Quota(Resource):
    """One quota of a key.

    allowed, left: None where nothing is limited.
    resets_in: seconds until some of it is free again; None if that is unknown.
    """

    name: str
    allowed: int | None
    used: int
    left: int | None
    resets_in: float | None


@dataclass(frozen=True)
class KeyUsage(Resource):
    """What a key may use, and has used.

    key: its name; empty without API keys.
    weight: callers that wait are served in proportion to it.
    """

    key: str
    weight: float
    quotas: tuple[Quota, ...]

    @classmethod
    def _members(cls, raw: Any) -> dict[str, Any]:
        quotas = tuple(Quota.from_json(quota) for quota in raw["quotas"])
        return super()._members(raw) | {"quotas": quotas}

    def quota(self, name: str) -> Quota | None:
        """The quota of a name; None if there is none."""
        return next((quota for quota in self.quotas if quota.name == name), None)
