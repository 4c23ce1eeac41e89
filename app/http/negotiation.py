"""What form of response a client asks for: the job at once, the finished job, or the picture itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from denoised.jobs.request import FORMATS, MEDIA_TYPES, Format

_WAIT = re.compile(r"\s*wait\s*(?:=\s*\"?([0-9]*)\"?\s*)?", re.IGNORECASE)
_ANY_PICTURE = "image/*"


@dataclass(frozen=True)
class Preference:
    """The response that a client asks for.

    Attributes:
        wait: seconds to wait for the job's end; None = not asked for.
        pictures: acceptable picture formats, the preferred one first; empty = a JSON response.
    """

    wait: float | None
    pictures: tuple[Format, ...]

    @classmethod
    def parse(cls, headers: Mapping[str, str], max_wait: float) -> Preference:
        """From `Prefer` (RFC 7240; unknown preferences are ignored) and `Accept`. max_wait: seconds."""
        return cls(wait=_wait(headers.get("prefer", ""), max_wait), pictures=_pictures(headers.get("accept", "")))


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` header contains this ETag (RFC 9110, 13.1.2: weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in tags or "*" in tags


def preference_applied(wait: float | None) -> dict[str, str]:
    """The header that states the granted wait in seconds; empty when none was asked for."""
    return {} if wait is None else {"Preference-Applied": f"wait={wait:g}"}


def _wait(prefer: str, max_wait: float) -> float | None:
    """The first `wait` preference, capped at `max_wait`; `wait` without a value means `max_wait`."""
    matches = [_WAIT.fullmatch(part.partition(";")[0]) for part in prefer.split(",")]
    return next((min(float(match[1] or "inf"), max_wait) for match in matches if match), None)


def _pictures(accept: str) -> tuple[Format, ...]:
    """The picture formats that are accepted with at least the quality of JSON, the best first."""
    qualities = dict(_qualities(accept))
    any_picture = qualities.get(_ANY_PICTURE, 0.0)
    json_quality = qualities.get("application/json", 0.0)
    accepted = {format: qualities.get(MEDIA_TYPES[format], any_picture) for format in FORMATS}
    preferred = [format for format in FORMATS if accepted[format] > 0 and accepted[format] >= json_quality]
    return tuple(sorted(preferred, key=lambda format: -accepted[format]))


def _qualities(accept: str) -> list[tuple[str, float]]:
    """The media ranges of an `Accept` header with their quality (RFC 9110, 12.5.1); 0 when it is invalid."""
    found = []
    for part in accept.split(","):
        media_type, *parameters = [piece.strip().lower() for piece in part.split(";")]
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            found.append((media_type, float(quality)))
        except ValueError:
            found.append((media_type, 0.0))
    return found
