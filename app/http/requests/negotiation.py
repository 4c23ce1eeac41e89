"""What form of response a client asks for: the job at once, the finished job, or the picture itself.

All parsing is by splitting, in time proportional to the length of the header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from denoised.app.http.errors import NotAcceptable
from denoised.jobs.request_choices import FORMATS, MEDIA_TYPES, Format

JSON = "application/json"
PROBLEM = "application/problem+json"
_ANY_PICTURE = "image/*"
_MAX_DIGITS = 9  # of a wait in seconds; a longer one exceeds every limit


@dataclass(frozen=True)
class Preference:
    """The response that a client asks for.

    Attributes:
        wait: seconds to wait for the job's end; None = not asked for.
        pictures: acceptable picture formats, the preferred one first; empty = a JSON response.
        json: whether a JSON response is acceptable.
    """

    wait: float | None
    pictures: tuple[Format, ...]
    json: bool = True

    @classmethod
    def parse(cls, headers: Mapping[str, str], max_wait: float) -> Preference:
        """From `Prefer` (RFC 7240; unknown preferences are ignored) and `Accept`. max_wait: seconds."""
        accept = AcceptedTypes.parse(headers.get("accept", ""))
        return cls(_wait(headers.get("prefer", ""), max_wait), _pictures(accept), accept.accepts(JSON))

    def check_acceptable(self) -> None:
        """Check that one of the possible responses is acceptable.

        Raises:
            NotAcceptable: when `Accept` names neither JSON nor a picture format.
        """
        if not self.json and not self.pictures:
            raise NotAcceptable([JSON, *MEDIA_TYPES.values()])


@dataclass(frozen=True)
class AcceptedTypes:
    """The media ranges of an `Accept` header (RFC 9110, 12.5.1).

    Attributes:
        qualities: quality by media range, in lower case; 0 when it is invalid. Empty = everything is accepted.
    """

    qualities: Mapping[str, float]

    @classmethod
    def parse(cls, accept: str) -> AcceptedTypes:
        found = {}
        for part in accept.split(","):
            media_type, *parameters = [piece.strip().lower() for piece in part.split(";")]
            if "/" in media_type:
                found[media_type] = _quality(parameters)
        return cls(found)

    def quality(self, media_type: str) -> float:
        """The quality of a media type: that of the most specific range that contains it, 0 if none does."""
        group = media_type.partition("/")[0]
        ranges = (media_type, f"{group}/*", "*/*")
        return next((self.qualities[each] for each in ranges if each in self.qualities), 0.0)

    def accepts(self, media_type: str) -> bool:
        return not self.qualities or self.quality(media_type) > 0


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` header contains this ETag (RFC 9110, 13.1.2: weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in tags or "*" in tags


def asks_for_no_wait(prefer: str) -> bool:
    """Whether `Prefer` contains `respond-async` (RFC 7240, 4.1)."""
    return any(part.partition(";")[0].strip().lower() == "respond-async" for part in prefer.split(","))


def preference_applied(wait: float | None) -> dict[str, str]:
    """The header that states the granted wait in seconds; empty when none was asked for."""
    return {} if wait is None else {"Preference-Applied": f"wait={wait:g}"}


def _wait(prefer: str, max_wait: float) -> float | None:
    """The first valid `wait` preference, capped at `max_wait`; `wait` without a value means `max_wait`."""
    for part in prefer.split(","):
        name, _, value = part.partition(";")[0].partition("=")
        digits = _unquoted(value.strip())
        if name.strip().lower() == "wait" and not digits.strip("0123456789"):
            significant = digits.lstrip("0") or digits[:1]
            unlimited = not significant or len(significant) > _MAX_DIGITS
            return max_wait if unlimited else min(float(significant), max_wait)
    return None


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return value[1:-1] if quoted else value


def _pictures(accept: AcceptedTypes) -> tuple[Format, ...]:
    """The picture formats that are accepted with at least the quality of JSON, the best first."""
    any_picture = accept.qualities.get(_ANY_PICTURE, 0.0)
    json_quality = accept.qualities.get(JSON, 0.0)
    accepted = {format: accept.qualities.get(MEDIA_TYPES[format], any_picture) for format in FORMATS}
    preferred = [format for format in FORMATS if accepted[format] > 0 and accepted[format] >= json_quality]
    return tuple(sorted(preferred, key=lambda format: -accepted[format]))


def _quality(parameters: Iterable[str]) -> float:
    """The parameter `q`, 1 when it is missing, 0 when it is invalid or negative."""
    text = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    digits = text.replace(".", "", 1)
    return min(float(text), 1.0) if len(text) <= 5 and digits.isascii() and digits.isdecimal() else 0.0
