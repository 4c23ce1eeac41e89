"""What Redis answers about RQ's queues, decoded; damaged values have a default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def written_key(arguments: Sequence[Any]) -> str:
    """The key that a command of a transaction writes to; a script names it after its text and the number of keys."""
    return str(arguments[3] if arguments[0] == "EVAL" else arguments[1])


def credit_of(text: bytes) -> float | None:
    """A caller's credit; None before its first turn, or if it is damaged."""
    try:
        credit = float(text)
    except ValueError:
        return None
    return credit if math.isfinite(credit) else None


def text_of(name: bytes) -> str:
    return name.decode(errors="replace")


def job_ids_of(executions: Sequence[bytes]) -> list[str]:
    """The distinct job ids of the entries of RQ's registry."""
    return list(dict.fromkeys(entry.decode(errors="replace").rpartition(":")[0] for entry in executions))
