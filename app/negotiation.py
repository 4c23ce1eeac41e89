"""How a client wants its answer: the job at once, the finished job, or the picture itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker.job import FORMATS, MEDIA_TYPES

_WAIT = re.compile(r"^\s*wait\s*=\s*\"?(\d{1,9})\"?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Preference:
    """wait: seconds, None = not asked for. picture: the format of the picture itself, None = JSON."""

    wait: float | None
    picture: str | None

    @classmethod
    def of(cls, headers: Mapping[str, str], longest: float) -> Preference:
        """From `Prefer` (RFC 7240; what is not understood is ignored) and `Accept`."""
        wait = _wait(headers.get("prefer", ""))
        return cls(wait=None if wait is None else min(wait, longest), picture=_picture(headers.get("accept", "")))


def names_tag(if_none_match: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` names this entity (RFC 9110, 13.1.2: weakly compared)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in tags or "*" in tags


def _wait(prefer: str) -> float | None:
    matches = [_WAIT.match(part.partition(";")[0]) for part in prefer.split(",")]
    return next((float(match[1]) for match in matches if match), None)


def _picture(accept: str) -> str | None:
    """The picture format that is asked for by name and liked at least as much as JSON."""
    liked = dict(_qualities(accept))
    json_quality = liked.get("application/json", 0.0)
    offers = [(liked.get(MEDIA_TYPES[format], 0.0), format) for format in FORMATS]
    quality, format = max(offers, key=lambda offer: offer[0])
    return format if quality > 0 and quality >= json_quality else None


def _qualities(accept: str) -> list[tuple[str, float]]:
    found = []
    for part in accept.split(","):
        media_type, *parameters = [piece.strip().lower() for piece in part.split(";")]
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            found.append((media_type, float(quality)))
        except ValueError:
            found.append((media_type, 0.0))
    return found
