"""What Redis holds in the place of a value that lies elsewhere: the name of an object, and its size.

A name is {store}/{job}/{file}. Redis may be written by other programs, too, so a name that could lead anywhere else,
or to the objects of another job, is not a reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from denoised.jobs.errors import RecordError

MAGIC = b"\x00denoised:"  # no picture, array or resume point begins with it
MAX_BYTES = 400  # of an encoded reference
_NAME = r"[0-9a-f]{32}/([0-9A-Za-z_-]{1,64})/[a-z][a-z0-9_-]{0,99}"
_ENCODED = re.compile(re.escape(MAGIC) + rb"([0-9]{1,15}):(" + _NAME.encode() + rb")")
_NAMED = re.compile(_NAME)


@dataclass(frozen=True)
class Reference:
    """name: of the object. size: in bytes."""

    name: str
    size: int

    def encode(self) -> bytes:
        return MAGIC + f"{self.size}:{self.name}".encode()

    @classmethod
    def parse(cls, value: bytes, job: str) -> Reference | None:
        """The reference to an object of a job; None for any other value.

        Raises:
            RecordError: for a damaged reference, or one to another job's object.
        """
        if not value.startswith(MAGIC):
            return None
        match = _ENCODED.fullmatch(value)
        if match is None or match[3].decode() != job:
            raise RecordError(f"the value refers to no object of job {job}")
        return cls(match[2].decode(), int(match[1]))


@dataclass(frozen=True)
class FramePlace:
    """Where the picture of a `frame` event is: bytes `start` … `end` of an object of `size` bytes."""

    name: str
    size: int
    start: int
    end: int

    def members(self) -> dict[str, Any]:
        """As the event holds it, in the place of `data`."""
        return {"object": self.name, "size": self.size, "start": self.start, "end": self.end}

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> FramePlace | None:
        """The place that an event names; None if it names none, or none of its own job."""
        name = event.get("object")
        numbers = [event.get(each) for each in ("size", "start", "end")]
        match = _NAMED.fullmatch(name) if isinstance(name, str) else None
        if match is None or match[1] != event.get("job") or not all(type(each) is int for each in numbers):
            return None
        size, start, end = (int(each) for each in numbers if each is not None)
        return cls(match[0], size, start, end) if 0 <= start < end <= size else None
