"""The large values of an update as objects: pictures, arrays, a resume point, and frames, many in one object.

A file's name begins with its kind and holds the attempt, so that no attempt writes what another one has written.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from denoised.jobs.results.failures import WHO
from denoised.jobs.results.ledger import LedgerEntry
from denoised.jobs.results.reference import FramePlace, Reference
from denoised.jobs.store.update import JobUpdate

log = logging.getLogger("denoised.jobs")

MAX_OBJECT_BYTES = 16 << 20  # more frames of an update go into several objects


class UpdateObjects:
    """The objects of an update. by_name: their bytes."""

    def __init__(self, update: JobUpdate, folder: str) -> None:
        self._update = update
        self._prefix = f"{folder}/{update.job}/"
        self.by_name: dict[str, bytes] = {}
        attempt = update.attempt
        self._images = {k: self._add(f"image-{k}-{attempt}", data) for k, data in update.images.items()}
        self._arrays = {
            (k, name): self._add(f"array-{k}-{name}-{attempt}", data) for (k, name), data in update.arrays.items()
        }
        saved, number = update.resume, update.number
        self._resume_file = f"resume-{attempt}-{number}"
        self._resume = self._add(self._resume_file, saved) if saved is not None else None
        self._events = list(self._move_frames(f"frames-{attempt}-{number}"))

    def entries(self) -> Iterator[LedgerEntry]:
        for name, data in self.by_name.items():
            yield LedgerEntry(self._update.job, name.removeprefix(self._prefix), len(data))

    def drop(self, refused: frozenset[tuple[str, str]]) -> None:
        """Leave out the resume point if it is among those that were refused."""
        if (self._update.job, self._resume_file) in refused:
            log.warning("resume point dropped: %s has no room", WHO, extra={"job": self._update.job})
            del self.by_name[self._prefix + self._resume_file]
            self._resume = None
            self._update.drop_resume()

    def referring(self) -> JobUpdate:
        """The update with references in the place of its values."""
        return replace(self._update, images=self._images, arrays=self._arrays, resume=self._resume, events=self._events)

    def _add(self, file: str, data: bytes) -> bytes:
        self.by_name[self._prefix + file] = data
        return Reference(self._prefix + file, len(data)).encode()

    def _move_frames(self, file: str) -> Iterator[dict[str, Any]]:
        """The events of the update, those of frames with the place of their picture."""
        part, placed = bytearray(), list[tuple[int, int, int]]()
        objects = list[bytes]()
        for event in self._update.events:
            data = _picture_of(event)
            if data is None:
                placed.append((-1, 0, 0))
                continue
            if part and len(part) + len(data) > MAX_OBJECT_BYTES:
                objects.append(bytes(part))
                part.clear()
            placed.append((len(objects), len(part), len(part) + len(data)))
            part += data
        objects += [bytes(part)] if part else []
        names = [f"{self._prefix}{file}-{k}" for k in range(len(objects))]
        self.by_name |= dict(zip(names, objects, strict=True))
        for event, (k, start, end) in zip(self._update.events, placed, strict=True):
            if k < 0:
                yield event
                continue
            kept = {name: value for name, value in event.items() if name != "data"}
            yield {**kept, **FramePlace(names[k], len(objects[k]), start, end).members()}


def _picture_of(event: Mapping[str, Any]) -> bytes | None:
    """The picture of a `frame` event; None for others."""
    data = event.get("data")
    if event["type"] != "frame" or not isinstance(data, str):
        return None
    try:
        return base64.b64decode(data, validate=True) or None
    except binascii.Error:
        return None
