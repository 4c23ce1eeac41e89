"""How a client wants its answer: the job at once, the finished job, or the picture itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from denoised.jobs.request import FORMATS, MEDIA_TYPES, Format

_WAIT = re.compile(r"\s*wait\s*(?:=\s*\"?([0-9]*)\"?\s*)?", re.IGNORECASE)
_ANY_PICTURE = "image/*"


@dataclass(frozen=True)
class Preference:
    """wait: seconds, None = not asked for. pictures: the formats in which the picture itself would do, the best first;
    none = JSON."""

    wait: float | None
    pictures: tuple[Format, ...]

    @classmethod
    def of(cls, headers: Mapping[str, str], longest: float) -> Preference:
        """From `Prefer` (RFC 7240; what is not understood is ignored) and `Accept`."""
        return cls(wait=_wait(headers.get("prefer", ""), longest), pictures=_pictures(headers.get("accept", "")))


def names_tag(if_none_match: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` names this entity (RFC 9110, 13.1.2: weakly compared)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in tags or "*" in tags


def applied(wait: float | None) -> dict[str, str]:
    """The header that says which wait was granted; none where none was asked for."""
    return {} if wait is None else {"Preference-Applied": f"wait={wait:g}"}


def _wait(prefer: str, longest: float) -> float | None:
    """The first wait that is named, as long as it may be; a bare `wait` is the longest."""
    matches = [_WAIT.fullmatch(part.partition(";")[0]) for part in prefer.split(",")]
    return next((min(float(match[1] or "inf"), longest) for match in matches if match), None)


def _pictures(accept: str) -> tuple[Format, ...]:
    """The picture formats that are asked for, by name or as any image, and liked at least as much as JSON."""
    liked = dict(_qualities(accept))
    any_picture = liked.get(_ANY_PICTURE, 0.0)
    qualities = {format: liked.get(MEDIA_TYPES[format], any_picture) for format in FORMATS}
    least = liked.get("application/json", 0.0)
    wanted = [format for format in FORMATS if qualities[format] > 0 and qualities[format] >= least]
    return tuple(sorted(wanted, key=lambda format: -qualities[format]))


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
