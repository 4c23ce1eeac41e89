"""What is written of a job at once: fields, events, pictures, perhaps its end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from denoised.jobs import redis_keys as keys
from denoised.jobs.record import TERMINAL, JobRecord, Status

EVENT_CAP = 50_000


@dataclass
class JobUpdate:
    """One atomic change of a job: fields, new pictures, events, and perhaps a new status.

    resume: what another attempt would go on from (`worker.engine.resume`). attempt: whose write it is; 0 = nobody's in
    particular (a cancel). number: rises with each write of an attempt, so that one repeated after a lost reply is not
    applied twice. error: `code` and `message`, where it is the end of a job that failed.
    """

    job: str
    attempt: int = 0
    number: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    images: dict[int, bytes] = field(default_factory=dict)
    status: Status | None = None
    error: Mapping[str, str] | None = None
    image_count: int = 0
    resume: bytes | None = None

    def save(self, resume: bytes, step: int, evaluations: int) -> None:
        """Have another attempt go on from here."""
        self.resume = resume
        self.fields |= {"saved_step": step, "saved_evaluations": evaluations}

    def end(self, status: Status, error: Mapping[str, str] | None = None) -> None:
        """Make this the last write of its job."""
        self.status, self.error = status, error
        self.fields["finished_at"] = repr(time.time())
        self.events.append({"type": status})

    def keys(self) -> list[str]:
        """KEYS of `jobs.scripts.WRITE`."""
        images = [keys.image(self.job, index) for index in self.images]
        resume = [] if self.resume is None else [keys.resume(self.job)]
        return [keys.job(self.job), keys.events(self.job), *images, *resume]

    def arguments(self, result_ttl: int) -> list[str | bytes]:
        """ARGV of `jobs.scripts.WRITE`. result_ttl: seconds that a job which is over is kept."""
        error = {} if self.error is None else {"error": json.dumps(dict(self.error))}
        spec = {
            "attempt": self.attempt,
            "number": self.number,
            "fields": {name: str(value) for name, value in self.fields.items()} | error,
            "events": [event_json(event["type"], event) for event in self.events],
            "status": self.status or "",
            "ttl": result_ttl if self.status in TERMINAL else 0,
            "images": self.image_count,
            "cap": EVENT_CAP,
            "resume_ttl": result_ttl if self.resume is not None else 0,
        }
        return [json.dumps(spec), *self.images.values(), *([] if self.resume is None else [self.resume])]


def ending(record: JobRecord, status: Status, error: Mapping[str, str] | None = None) -> JobUpdate:
    """The write that ends a job from outside, whatever attempt it is in."""
    write = JobUpdate(record.id, image_count=record.request.n)
    write.end(status, error)
    return write


def event_json(kind: str, event: Mapping[str, Any]) -> str:
    """An event as its stream entry holds it."""
    return json.dumps({"type": kind, **event})
