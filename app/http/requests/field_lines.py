"""Header fields that were sent in several lines (RFC 9110, 5.2 and 5.3)."""

from __future__ import annotations

from collections import Counter

from starlette.types import Scope

from denoised.app.http.errors import BadRequest

# Of the fields that this server reads: lists, which may be split over several lines, and single values.
LISTS = frozenset({b"accept", b"content-encoding", b"if-none-match", b"prefer"})
SINGLE_VALUES = frozenset(
    {b"authorization", b"content-type", b"idempotency-key", b"last-event-id", b"origin", b"sec-fetch-site"}
)


def combine_field_lines(scope: Scope) -> None:
    """Join the lines of each list, so that everything behind this sees one line.

    Raises:
        BadRequest: when a single value was given twice, and differently.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    counts = Counter(name for name, _ in headers)
    repeated = {name for name, count in counts.items() if count > 1}
    for name in repeated & SINGLE_VALUES:
        if len({value for each, value in headers if each == name}) > 1:
            raise BadRequest(f"the header {name.decode()} was given {counts[name]} times (allowed: once)")
    if lists := repeated & LISTS:
        joined = [(name, b", ".join(value for each, value in headers if each == name)) for name in sorted(lists)]
        scope["headers"] = [(name, value) for name, value in headers if name not in lists] + joined
