"""One atomic change of a job: fields, events, pictures, perhaps its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

from denoised.jobs.record import TERMINAL, JobRecord, Status
from denoised.jobs.store import redis_keys as keys
from denoised.jobs.store.scripts.job_functions import EVENT_CAP


class UpdateResult(IntFlag):
    """What Redis answers to an update; zero means refused: the job is over, or belongs to another attempt.

    APPLIED: it was applied, now or by an earlier try.
    WATCHED: a client follows the job's events.
    QUARANTINED: this is the job's last attempt, and it has made no progress yet.
    """

    APPLIED = 1
    WATCHED = 2
    QUARANTINED = 4


@dataclass
class JobUpdate:
    """One atomic change of a job.

    attempt: the attempt that writes it; 0 applies to any attempt (a cancel, say).
    number: rises with each update of an attempt, so that one repeated after a lost reply is applied once.
    fields: of the job's record.
    events: appended in this order.
    images: encoded pictures by index.
    arrays: .npy files by image index and name.
    status: a new status, if any.
    error: `code` and `message` of a failure.
    image_count: images of the whole job, to let all of them expire at its end.
    resume: where another attempt can continue (`worker.engine.resume`).
    essential: applied even when Redis has no memory left; see `shed`. An update of attempt 0 always is.
    moved: the same with references to objects that are written already (`jobs.results.results`).
    """

    job: str
    attempt: int = 0
    number: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    images: dict[int, bytes] = field(default_factory=dict)
    arrays: dict[tuple[int, str], bytes] = field(default_factory=dict)
    status: Status | None = None
    error: Mapping[str, str] | None = None
    image_count: int = 0
    resume: bytes | None = None
    essential: bool = False
    moved: JobUpdate | None = None

    @property
    def has_values(self) -> bool:
        """Whether it holds anything large: pictures, arrays, a resume point, frames."""
        frames = any(event["type"] == "frame" for event in self.events)
        return bool(self.images or self.arrays or frames or self.resume is not None)

    def shed(self) -> None:
        """Drop what a job can do without when Redis has no memory left: frames, and a further resume point."""
        self.events = [event for event in self.events if event["type"] != "frame"]
        if self.resume is not None:
            self.drop_resume()
        self.essential, self.moved = True, None

    def drop_resume(self) -> None:
        """Leave another attempt what was saved before."""
        self.resume = None
        self.fields.pop("saved_step", None)
        self.fields.pop("saved_evaluations", None)

    def save(self, resume: bytes | None, step: int, evaluations: int) -> None:
        """Let another attempt continue from here. resume: None when every image is finished or not started yet."""
        self.resume = resume
        self.fields |= {"saved_step": step, "saved_evaluations": evaluations}

    def end(self, status: Status, error: Mapping[str, str] | None = None) -> None:
        """Make this the last update of its job. Redis notes the time."""
        self.status, self.error = status, error
        self.events.append({"type": status})

    def requeue(self) -> None:
        """Return the job to its queue. What was saved before stays."""
        self.status = "queued"
        self.events.append({"type": "queued", "queue_position": 0, "eta_seconds": None})

    def start_over(self) -> None:
        """Return the job to its queue, and have its next attempt use nothing that this or an earlier one has made."""
        self.fields, self.events, self.images, self.arrays, self.resume = {"numerics": ""}, [], {}, {}, None
        self.requeue()

    def keys(self) -> list[str]:
        """KEYS of `jobs.store.scripts.job_scripts.UPDATE`."""
        images = [keys.image(self.job, index) for index in self.images]
        arrays = [keys.array(self.job, index, name) for index, name in self.arrays]
        resume = [] if self.resume is None else [keys.resume(self.job)]
        return [keys.job(self.job), keys.events(self.job), *images, *arrays, *resume]

    def arguments(self, result_ttl: int) -> list[str | bytes]:
        """ARGV of `jobs.store.scripts.job_scripts.UPDATE`. result_ttl: seconds that a finished job is kept."""
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
            "essential": self.essential,
            "resume_ttl": result_ttl if self.resume is not None else 0,
        }
        blobs = [*self.images.values(), *self.arrays.values()]
        return [json.dumps(spec), *blobs, *([] if self.resume is None else [self.resume])]


def final_update(record: JobRecord, status: Status, error: Mapping[str, str] | None = None) -> JobUpdate:
    """The update that ends a job from outside, whatever attempt it is in."""
    update = JobUpdate(record.id, image_count=record.request.n)
    update.end(status, error)
    return update


def event_json(kind: str, event: Mapping[str, Any]) -> str:
    """An event as its stream entry holds it: `type` and its own fields."""
    return json.dumps({"type": kind, **event})
