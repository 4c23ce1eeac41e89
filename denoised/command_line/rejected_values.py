"""A rejected value in one sentence: what was given, and what is allowed. The errors are those of pydantic, as mappings.

The command line, the HTTP front end and the reader of model cards say the same of a field; this file imports only the
standard library.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

TYPES = {
    "string": "a string",
    "string_unicode": "text without unpaired surrogates",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "finite": "a finite number",
}
OBJECTS = ("model_type", "model_attributes_type", "dict_type")
COMPARED_CHARACTERS = 80  # of an unknown name
BOUNDS = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}


def describe_error(error: Mapping[str, Any], shown: str) -> str:
    """The sentence for any error: `describe_rejected_value`, or what pydantic or a validator says.

    shown: the value as it is to be shown.
    """
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"invalid JSON ({(error.get('ctx') or {}).get('error', message)})"
    if kind == "missing":
        return "is missing"
    if kind in OBJECTS:
        return f"should be a JSON object (given: {shown})"
    return describe_rejected_value(error, shown) or f"{message[:1].lower()}{message[1:]} (given: {shown})"


def describe_unknown_name(name: str, shown: str, known: Collection[str], what: str) -> str:
    """`is not a field of this request; did you mean label? (given: 3; allowed: model, label)`.

    shown: the value that was given under that name; what: `field of this request`.
    """
    similar = difflib.get_close_matches(name[:COMPARED_CHARACTERS].lower(), known, n=1, cutoff=0.75)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    allowed = f"; allowed: {', '.join(known)}" if known else ""
    return f"is not a {what}{hint} (given: {shown}{allowed})"


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
    if "pattern" in limits:
        return f"text that matches {limits['pattern']}"
    if "expected" in limits:  # of a literal: 'png', 'webp' or 'jpeg'
        return str(limits["expected"]).replace("'", "")
    return TYPES.get(kind) or TYPES.get(kind.partition("_")[0], "")


def _wrong_length(error: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    unit = "character" if error["type"].startswith("string") else "item"
    count = len(error["input"])
    allowed = f"at most {limits['max_length']}" if "max_length" in limits else f"at least {limits['min_length']}"
    return f"has {count} {unit if count == 1 else unit + 's'} (allowed: {allowed})"


def _number(limit: Any) -> str:
    return str(int(limit)) if isinstance(limit, float) and limit.is_integer() else str(limit)
