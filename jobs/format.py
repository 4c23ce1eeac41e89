"""The format version of everything that processes exchange through Redis, and the checked reading of it.

Job records, worker reports, events and resume points carry `format`. A reader ignores fields that it does not
know, so that two versions can run side by side during an upgrade, unless the record lists them in `requires`.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from denoised.jobs.errors import RecordError

FORMAT = 1
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # half of a character beyond the first 65,536, escaped

log = logging.getLogger("denoised.jobs")

T = TypeVar("T")


def parse_json(text: str | bytes, limit: int) -> Any:
    """Decode JSON that another process has written.

    Raises:
        RecordError: for anything that is not UTF-8 or not JSON, holds NaN, an infinity or an unpaired surrogate, is
            nested too deeply, or is longer than `limit` bytes (or characters).
    """
    if len(text) > limit:
        raise RecordError(f"the JSON has {len(text)} bytes (allowed: {limit})")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if SURROGATE.search(text if isinstance(text, bytes) else text.encode(errors="replace")):
            json.dumps(value, ensure_ascii=False).encode()  # raises for an unpaired one: no response could contain it
        return value
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is not JSON: {error or type(error).__name__}") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text:.40} is too large for a number")
    return number


def read_dataclass(cls: type[T], data: object) -> T:
    """An instance of a dataclass from decoded JSON; fields that it does not know are ignored.

    Raises:
        RecordError: for a value that is not an object, lacks a field, or has a field of the wrong type.
    """
    if not isinstance(data, dict):
        raise RecordError(f"{cls.__name__} is a {type(data).__name__} (allowed: an object)")
    hints = _hints(cls)  # type: ignore[arg-type]  # mypy: a type[T] is Hashable
    known = {name: _nested(value, hints[name]) for name, value in data.items() if name in hints}
    for name, value in known.items():
        if not _fits(value, hints[name]):
            raise RecordError(f"{cls.__name__}.{name} is {value!r:.60} (allowed: {hints[name]})")
    try:
        return cls(**known)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{cls.__name__} cannot be read: {error}") from error


def check_requires(what: str, requires: object, known: Iterable[str]) -> None:
    """Check that this version knows every name in a record's `requires`.

    Raises:
        RecordError: when it does not.
    """
    names = requires if isinstance(requires, list | tuple) else [requires]
    unknown = sorted({str(name) for name in names} - set(known))
    if unknown:
        raise RecordError(f"{what} requires {', '.join(unknown)}, unknown to this version (format {FORMAT})")


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """The type of each field."""
    hints = get_type_hints(cls)
    return {each.name: hints[each.name] for each in fields(cls)}


def _nested(value: object, hint: Any) -> object:
    """The value of a field; that of a tuple of dataclasses is a JSON array of objects.

    Raises:
        RecordError: for an object that is none of that dataclass.
    """
    if get_origin(hint) is tuple and isinstance(value, list) and is_dataclass(item := get_args(hint)[0]):
        return tuple(read_dataclass(item, each) for each in value)  # type: ignore[arg-type]  # a class, no instance
    return value


def _fits(value: object, hint: Any) -> bool:
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if isinstance(value, bool):
        return hint in (bool, object)
    return isinstance(value, origin or hint) or (hint is float and isinstance(value, int))


class UnreadableLog:
    """Logs each unreadable record once, however often it is met. Thread-safe."""

    REMEMBERED = 1_000

    def __init__(self) -> None:
        self._logged: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def skip(self, kind: str, name: str, error: Exception) -> None:
        """Log that a record is skipped. kind: "job", "event", "worker"; name: its id."""
        key = f"{kind} {name}"
        with self._lock:
            if key in self._logged:
                return
            self._logged[key] = None
            if len(self._logged) > self.REMEMBERED:
                self._logged.popitem(last=False)
        log.warning("record skipped", extra={kind: name, "reason": str(error)})
