"""What this worker's attempt at a job has told the world, and what it has yet to tell."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from denoised.jobs.record import Image, JobRecord, image_url
from denoised.jobs.request import SamplingRequest
from denoised.jobs.update import JobUpdate
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.encoding import encode, encode_frame
from denoised.worker.engine.resume import ResumePoint, to_bytes
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.engine.turn import Advanced
from denoised.worker.errors import TrajectoryError

log = logging.getLogger("denoised.worker")

TELL_SECONDS = 0.25  # between two writes of a job that goes on while nobody watches
SOON_SECONDS = TELL_SECONDS  # between the first resume points of an attempt
SAVE_SECONDS = 1.0  # between two resume points of a job, so that with all delays less than 2 s are lost with a worker
SURE_SECONDS = TELL_SECONDS + 0.25  # a worker that is lost has done more than it had written: less than in this time


@dataclass
class AttemptState:
    """What this worker's attempt at a job has told the world so far.

    reached: how many steps each image has done; points: where the images are that are on their way, but for
    those still at x_T; lost_at: the most evaluations that an attempt had whose worker was lost; accused: whether a
    worker was lost and the job has not got further since: then each of its turns is saved, so that when the next worker
    goes, too, it needs few turns to get further; exact: whether `lost_at` is all that it had, since its turns were
    waited for by then (`Publisher.settle`); further_since: when it got further; apart: whether it runs without
    neighbours until it is cleared; watched: whether somebody follows its events; draft: what has happened and is not
    written yet.
    """

    id: str
    request: SamplingRequest
    attempt: int
    model: ServedModel
    numerics: str
    request_id: str | None = None
    reached: list[int] = field(default_factory=list)
    images: dict[int, Image] = field(default_factory=dict)
    points: dict[int, ResumePoint] = field(default_factory=dict)
    step: int = 0
    writes: int = 0
    evaluations: int = 0
    rows: int = 0
    turns: int = 0
    lost_at: int = 0
    accused: bool = False
    exact: bool = False
    further_since: float | None = None
    apart: bool = False
    watched: bool = False
    draft: JobUpdate | None = None
    over: bool = False
    begun_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def begun(cls, record: JobRecord, model: ServedModel, numerics: str) -> AttemptState:
        """An attempt that has just begun, none of whose images is on its way yet."""
        return cls(
            record.id,
            record.request,
            record.attempt,
            model,
            numerics,
            record.request_id,
            reached=[0] * record.request.n,
            evaluations=record.evaluations,
            lost_at=record.lost_at,
            accused=record.losses > 0,
            exact=record.losses > 1,
            apart=record.suspect,
            watched=record.watched or record.request.preview_every > 0,
        )

    def resume(self, record: JobRecord, trajectories: Sequence[Trajectory]) -> None:
        """Go on from what earlier attempts made and where these trajectories are."""
        self.images = {image.index: image for image in record.images}
        self.reached = [record.request.steps] * record.request.n
        for trajectory in trajectories:
            self.reached[trajectory.index] = trajectory.plan.step[trajectory.row - 1] if trajectory.row else 0
            if trajectory.row:
                self.points[trajectory.index] = ResumePoint(trajectory.row, trajectory.registers)
        self.step = min(self.reached)
        self.evaluations = record.request.evaluations - sum(each.pending_evaluations for each in trajectories)

    @property
    def named(self) -> dict[str, str | None]:
        """What a line of the log tells it by."""
        return {"job": self.id, "request_id": self.request_id}

    @property
    def unsaved_seconds(self) -> float:
        """How long it may go on without being saved: less at first, when there is nothing to go on from."""
        age = time.monotonic() - self.begun_at
        return min(SAVE_SECONDS, max(SOON_SECONDS, age / 4))

    def gets_on(self) -> bool:
        """Whether it is further than where it was lost; for a while, if that is not known exactly."""
        if self.evaluations <= self.lost_at or self.exact:
            return self.evaluations > self.lost_at
        if self.further_since is None:
            self.further_since = time.monotonic()
        return time.monotonic() - self.further_since >= SURE_SECONDS

    @property
    def mean_batch(self) -> float:
        """Rows that the network was at when it took part, on average."""
        return self.rows / max(self.turns, 1)

    def note(self, rows: int, items: Sequence[Advanced], error: TrajectoryError | None) -> None:
        """Draft its part of a turn, its end included. rows: that the network was at; error: of one of its images."""
        self.turns += 1
        self.rows += rows
        write = self.take_pending_update()
        try:
            self._progress(items, write)
        except Exception as problem:
            log.exception("picture could not be encoded", extra=self.named)
            error = TrajectoryError("encoding_failed", f"{type(problem).__name__}: {problem}")
        if error is not None:
            write.end("failed", {"code": error.code, "message": str(error)})
        elif len(self.images) == self.request.n:
            write.end("succeeded")
        elif self.accused or time.monotonic() - self.saved_at >= self.unsaved_seconds:
            self.save(write)
        self.draft = write

    @property
    def needs_flush(self) -> bool:
        """Whether somebody waits for its draft; the first of an attempt always presses: the reply tells who watches. A
        resume point comes with what is told next, but for a job that is accused.
        """
        draft = self.draft
        if draft is None:
            return False
        saved = draft.resume is not None and self.accused
        return draft.number == 1 or draft.status is not None or saved or bool(draft.images)

    def take_pending_update(self) -> JobUpdate:
        """What has happened and is not written yet; from here on the caller's."""
        draft, self.draft = self.draft, None
        if draft is None:
            self.writes += 1
            draft = JobUpdate(self.id, attempt=self.attempt, number=self.writes, image_count=self.request.n)
        return draft

    def save(self, write: JobUpdate) -> None:
        """Have another attempt go on from here. That clears the job of its worker's loss once it gets on."""
        self.saved_at = time.monotonic()
        if self.points:
            write.save(to_bytes(self.points), self.step, self.evaluations)
        if self.gets_on():
            write.fields["losses"] = 0

    def _progress(self, items: Sequence[Advanced], write: JobUpdate) -> None:
        for item in items:
            self.evaluations += item.trajectory.rows_per_evaluation
            self.reached[item.trajectory.index] = item.step
            self.points[item.trajectory.index] = ResumePoint(item.row, item.registers)
        write.fields |= {"evaluations": self.evaluations, "mean_batch": self.mean_batch}
        reached = min(self.reached)
        if reached > self.step:
            self.step = reached
            write.fields["step"] = reached
            progress = {"step": reached, "steps": self.request.steps, "evaluations": self.evaluations}
            write.events.append({"type": "progress", **progress})
        for item in items:
            write.events += self._frames(item)
            if item.result is not None:
                self._finish_image(item, item.result, write)

    def _frames(self, item: Advanced) -> list[dict[str, Any]]:
        every = self.request.preview_every
        if not every or not item.completed or item.step % every:
            return []
        tensors = {"x0": item.denoised, "xt": item.x_t}
        kinds = tensors if self.request.preview == "both" else [self.request.preview]
        return [
            {
                "type": "frame",
                "image": item.trajectory.index,
                "step": item.step,
                "steps": self.request.steps,
                "t": item.t,
                "sigma": item.sigma,
                "kind": kind,
                "media_type": "image/png",
                "data": base64.b64encode(encode_frame(self.model.preview(tensors[kind][None])[0])).decode(),
            }
            for kind in kinds
        ]

    def _finish_image(self, item: Advanced, final: Tensor, write: JobUpdate) -> None:
        request, index = self.request, item.trajectory.index
        pixels = self.model.decode(final[None])[0]
        data = encode(pixels, request.format, request.parameters(index, self.numerics))
        image = Image(
            index=index,
            seed=request.seed + index,
            width=pixels.shape[1],
            height=pixels.shape[0],
            format=request.format,
            sha256=hashlib.sha256(data).hexdigest(),
        )
        self.images[index] = image
        del self.points[index]
        write.images[index] = data
        write.fields["images"] = self._images_json()
        event = {"index": index, "seed": image.seed, "sha256": image.sha256, "url": image_url(self.id, index)}
        write.events.append({"type": "image", **event})

    def _images_json(self) -> str:
        return json.dumps([asdict(self.images[index]) for index in sorted(self.images)])
