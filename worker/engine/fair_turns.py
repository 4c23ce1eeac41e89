"""Whose turn is next: divides the worker's time among callers whose jobs cannot share a turn.

Jobs of different models, or of different sizes, take turns. Seconds are counted, not turns: a turn of a large model may
take as long as a hundred of a small one. No arithmetic on tensors; imports no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Protocol

from denoised.worker.engine.fair_slots import CallerShares, Served

MAX_KEYS = 256  # whose last turn is remembered even if they have no members


class Candidate(Served, Protocol):
    """What the choice needs to know about a trajectory."""

    model: str

    @property
    def batch_key(self) -> Hashable: ...


class FairTurns:
    """Counts the seconds that each caller has had, over its weight, since it has been in the batch."""

    def __init__(self) -> None:
        self._shares = CallerShares()
        self._turn = 0
        self._last_turn: dict[Hashable, int] = {}  # by key
        self._parts: Mapping[str, float] = {}  # of a second of the turn in progress, by caller
        self._began_at = 0.0

    def choose_key(self, waiting: Sequence[Candidate]) -> Hashable:
        """Of the keys of the caller that was served least, the one that was served longest ago.

        Of several such keys, that of the first model by name, then of its oldest member.
        waiting: one or more, the oldest first.
        """
        served = self._shares.of(list(dict.fromkeys(member.caller.owner for member in waiting)))
        owner = min(served, key=served.__getitem__)
        models = {member.batch_key: member.model for member in waiting if member.caller.owner == owner}
        return min(models, key=lambda key: (self._last_turn.get(key, -1), models[key]))

    def begin(self, members: Sequence[Candidate], now: float, present: Collection[Candidate]) -> None:
        """A turn of these members, of one key, begins now, by a monotonic clock; without members, the worker is idle.

        The turn before ends: its members have had its seconds, in proportion to their rows.
        present: all members of the batch; callers without any are forgotten, as are keys if there are many.
        """
        seconds = now - self._began_at
        served = {owner: seconds * part for owner, part in self._parts.items()}
        self._shares.add(served, {member.caller.owner for member in present})
        self._parts, self._began_at = _parts(members), now
        if members:
            self._turn += 1
            self._last_turn[members[0].batch_key] = self._turn
        if len(self._last_turn) > MAX_KEYS:
            keys = {member.batch_key for member in present}
            self._last_turn = {key: turn for key, turn in self._last_turn.items() if key in keys}


def _parts(members: Sequence[Served]) -> Mapping[str, float]:
    """What each caller has of a second of a turn, over its weight. They change when the turn is over.

    Images that are finished when they come, at strength 0, have no rows.
    """
    parts: defaultdict[str, float] = defaultdict(float)
    rows = sum(member.rows for member in members) or 1
    for member in members:
        parts[member.caller.owner] += member.rows / rows / member.caller.weight
    return parts
