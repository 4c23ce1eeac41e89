"""A rejected value in one sentence: what was given, and what is allowed. The errors are those of pydantic, as mappings.

The command line and the HTTP front end say the same of a field; this file imports only the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "finite": "a finite number",
}
BOUNDS = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}


def describe_rejected_value(error: Mapping[str, Any], shown: str) -> str | None:
    """`0 was given (allowed: 1 or more)`; None for an error without such a sentence.

    shown: the value as it is to be shown.
    """
    limits = error.get("ctx") or {}
    if error["type"] in ("string_too_long", "string_too_short", "too_long", "too_short"):
        return f"{shown} {_wrong_length(error, limits)}"
    allowed = _allowed(error["type"], limits)
    return f"{shown} was given (allowed: {allowed})" if allowed else None


def _allowed(kind: str, limits: Mapping[str, Any]) -> str:
    for name, phrase in BOUNDS.items():
        if name in limits:
            return phrase.format(_number(limits[name]))
    if "expected" in limits:  # of a literal: 'png', 'webp' or 'jpeg'
        return str(limits["expected"]).replace("'", "")
    return TYPES.get(kind.partition("_")[0], "")


def _wrong_length(error: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    unit = "character" if error["type"].startswith("string") else "item"
    count = len(error["input"])
    allowed = f"at most {limits['max_length']}" if "max_length" in limits else f"at least {limits['min_length']}"
    return f"has {count} {unit if count == 1 else unit + 's'} (allowed: {allowed})"


def _number(limit: Any) -> str:
    return str(int(limit)) if isinstance(limit, float) and limit.is_integer() else str(limit)
