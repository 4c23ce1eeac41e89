"""Error messages for invalid request bodies: each names the field, the value and what is allowed."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from denoised.command_line.rejected_values import describe_error, describe_unknown_name

MAX_ERRORS = 20  # that one response lists
MAX_NAMES = 20  # that one message lists
MAX_VALUE_LENGTH = 80  # characters of a rejected value that a message repeats


def describe_validation_errors(errors: Sequence[Any], fields: Collection[str] = ()) -> list[tuple[str, str]]:
    """Turn Pydantic's errors into (field, message) pairs, at most `MAX_ERRORS` and one that counts the rest.

    fields: the names of all fields of the request.
    """
    found = [(_field(error), _message(error, fields)) for error in errors[:MAX_ERRORS]]
    more = len(errors) - MAX_ERRORS
    return [*found, ("body", f"and {more} more errors")] if more > 0 else found


def describe_unknown_fields(
    body: Mapping[str, object], unknown: Collection[str], fields: Collection[str]
) -> list[tuple[str, str]]:
    """The (field, message) pairs of a body's unknown fields: the first `MAX_ERRORS`, and one that counts the rest."""
    first = [name for name in body if name in unknown][:MAX_ERRORS]
    found = [(_truncate(format_value(name)[1:-1]), _unknown_field(name, body[name], fields)) for name in first]
    more = len(unknown) - len(first)
    return [*found, ("body", f"and {more} more errors")] if more else found


def describe_unreadable_body(cause: BaseException | None) -> str:
    """Say what is wrong with a body from the exception that `json.loads` raised."""
    if isinstance(cause, json.JSONDecodeError):
        return f"invalid JSON ({cause})"
    if isinstance(cause, UnicodeDecodeError):
        return f"invalid JSON (byte {cause.start} is not valid {cause.encoding.upper()})"
    if isinstance(cause, RecursionError):
        return "unreadable JSON (nested too deeply; allowed: one object)"
    if isinstance(cause, ValueError):
        return f"unreadable JSON (a number is too long; allowed: {sys.get_int_max_str_digits()} digits)"
    return "unreadable"


def format_value(value: object) -> str:
    """A rejected value as JSON, cut to `MAX_VALUE_LENGTH` characters and free of unpaired surrogates."""
    if isinstance(value, str) and len(value) > MAX_VALUE_LENGTH - 2:
        value = value[: MAX_VALUE_LENGTH - 3] + "…"  # inside the quotation marks
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if isinstance(value, str) else _truncate(text)


def join_names(names: Sequence[str]) -> str:
    """Names for a message: all of them, or the first `MAX_NAMES` and their number."""
    return ", ".join(names[:MAX_NAMES]) + (f", … ({len(names)} in all)" if len(names) > MAX_NAMES else "")


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 1] + "…"


def _field(error: Any) -> str:
    if error["type"] == "json_invalid":
        return "body"
    path = [str(part) for part in error["loc"] if part not in ("body", "query", "path", "header")]
    return _truncate(".".join(path)) or "body"


def _message(error: Any, fields: Collection[str]) -> str:
    if error["type"] == "extra_forbidden":
        return _unknown_field(str(error["loc"][-1]), error.get("input"), fields)
    return describe_error(error, format_value(error.get("input")))


def _unknown_field(name: str, value: object, fields: Collection[str]) -> str:
    return describe_unknown_name(name, format_value(value), fields, "field of this request")
