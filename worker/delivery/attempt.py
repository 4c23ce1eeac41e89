"""A worker's attempt at a job: how far it is, and what of that is not written yet."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from denoised.jobs.record import ArrayFile, JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.store.started_attempt import StartedAttempt
from denoised.jobs.store.update import JobUpdate, UpdateResult
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.pictures.outputs import (
    Picture,
    decode_finished,
    encode_image,
    encoding_failure,
    frame_events,
    image_event,
)
from denoised.worker.delivery.pictures.task_outputs import arrays_of, encode_array, likelihood_result, result_at_level
from denoised.worker.delivery.progress import AttemptProgress
from denoised.worker.engine.resume import to_bytes
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.engine.turn import Advanced
from denoised.worker.errors import TrajectoryError

log = logging.getLogger("denoised.worker")

FLUSH_SECONDS = 0.25  # between two updates of a job that nobody watches
FIRST_SAVE_SECONDS = FLUSH_SECONDS  # between the first resume points of an attempt
SAVE_SECONDS = 1.0  # between later ones, so that with all delays less than 2 s of work are lost with a worker
RECOVERY_SECONDS = 3.0  # of evaluations of an attempt after a lost worker, in which each turn is saved


@dataclass
class PendingWrites:
    """The updates of an attempt.

    written: how many have been handed out to be written.
    pending: what has happened since the last one.
    is_urgent: whether that must not wait for a later turn of the job.
    started_at, saved_at: when the attempt started and when it was saved last (`time.monotonic`).
    spent: seconds of its turns so far.
    """

    written: int = 0
    pending: JobUpdate | None = None
    is_urgent: bool = False
    started_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)
    spent: float = 0.0

    @property
    def age(self) -> float:
        """Seconds since the attempt started."""
        return time.monotonic() - self.started_at

    @property
    def save_is_due(self) -> bool:
        """Whether the resume point is too old; a young attempt has little to resume from, so it is saved sooner."""
        interval = min(SAVE_SECONDS, max(FIRST_SAVE_SECONDS, self.age / 4))
        return time.monotonic() - self.saved_at >= interval


@dataclass
class AttemptState:
    """A worker's attempt at a job.

    watched: a client follows the job's events, so that each turn is written at once.
    quarantined: it is the job's last attempt, which runs alone until it makes progress.
    over: nothing more is written.
    decoding_seconds: of the decoder's batches that the job took part in; the decoder's thread adds to them.
    """

    record: JobRecord
    model: ServedModel
    numerics: str
    progress: AttemptProgress
    writes: PendingWrites = field(default_factory=PendingWrites)
    watched: bool = False
    quarantined: bool = False
    over: bool = False
    decoding_seconds: float = 0.0

    @classmethod
    def begin(cls, started: StartedAttempt, model: ServedModel, numerics: str) -> AttemptState:
        """A new attempt; see `resume` for the images that it continues."""
        record = started.record
        return cls(
            record,
            model,
            numerics,
            AttemptProgress([0] * record.request.n, evaluations=record.evaluations),
            watched=record.watched or record.request.preview_every > 0,
            quarantined=started.quarantined,
        )

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def request(self) -> SamplingRequest:
        return self.record.request

    @property
    def unfinished(self) -> int:
        """How many images have no picture yet, or are not through their plan if they make none."""
        if not self.request.makes_pictures:
            return self.request.n - self.progress.count_ended(self.request.plan_rows)
        return self.request.n - len(self.progress.images)

    @property
    def log_fields(self) -> dict[str, str | None]:
        """The fields that identify the job in a line of the log."""
        return {"job": self.record.id, "request_id": self.record.request_id}

    @property
    def recovering(self) -> bool:
        """Whether each turn is saved at once: workers were lost, and the job may not be further than it was then.

        If it kills its workers, the next attempt then starts right where it kills, and makes no progress. The time is
        that of evaluations: the lost attempt had less than `RECOVERY_SECONDS` of them unsaved, and saving is not free.
        """
        return self.record.losses > 0 and self.writes.spent < RECOVERY_SECONDS

    def resume(self, trajectories: Sequence[Trajectory]) -> None:
        """Continue where earlier attempts left these trajectories."""
        self.progress.resume(self.record, trajectories)

    def record_step(
        self,
        batch: int,
        items: Sequence[Advanced],
        error: TrajectoryError | None,
        seconds: float = 0.0,
        is_sound_after: Callable[[Exception], bool] = lambda problem: True,
    ) -> None:
        """Add the job's part of a turn to the pending update, its end included.

        batch: rows in the turn's evaluation.
        error: of one of the job's images.
        seconds: that the turn took.
        is_sound_after: whether an error of encoding is not the device's; otherwise it is raised.

        Pictures of latents are added later, by `record_pictures`.
        """
        # An image that waits for the decoder may have no further turn: what it has come to is saved now. While a job
        # recovers, each turn is saved, the last of them to say that the recovery is over.
        is_urgent = self.recovering or bool(self.finished_latents(items))
        self.writes.spent += seconds
        update = self.take_pending_update()
        try:
            self._add_progress(batch, items, update)
        except Exception as problem:
            if not is_sound_after(problem):
                raise
            log.exception("picture could not be encoded", extra=self.log_fields)
            error = encoding_failure(problem)
        self._close_update(update, error, is_urgent=is_urgent)

    def record_pictures(self, pictures: Sequence[Picture], error: TrajectoryError | None) -> None:
        """Add decoded pictures to the pending update, the job's end included. error: of one of the job's images."""
        update = self.take_pending_update()
        self._add_pictures(pictures, update)
        self._close_update(update, error, is_urgent=True)

    def finished_latents(self, items: Sequence[Advanced]) -> Mapping[int, Tensor]:
        """Those images of a turn that wait for a decoder now: x_0 (C, h, w) by index."""
        if self.model.card.latent is None or not self.request.makes_pictures:
            return {}
        return {item.trajectory.index: item.result for item in items if item.result is not None}

    @property
    def needs_flush(self) -> bool:
        """Whether the pending update must not wait.

        The first of an attempt must not, since its reply says whether the job is watched. A resume point waits for the
        next flush unless the job has lost workers.
        """
        update = self.writes.pending
        if update is None:
            return False
        is_urgent = "tracked" in update.fields or self.writes.is_urgent
        return update.number == 1 or update.status is not None or is_urgent

    def take_pending_update(self) -> JobUpdate:
        """What has happened and is not written yet; the caller takes it over."""
        update, self.writes.pending, self.writes.is_urgent = self.writes.pending, None, False
        if update is None:
            self.writes.written += 1
            update = JobUpdate(
                self.id,
                attempt=self.record.attempt,
                number=self.writes.written,
                image_count=self.request.n,
            )
        return update

    def apply_result(self, result: UpdateResult) -> None:
        """Take in what Redis answered to an update that it applied."""
        self.watched = self.watched or UpdateResult.WATCHED in result
        self.quarantined = UpdateResult.QUARANTINED in result

    def save(self, update: JobUpdate) -> None:
        """Let another attempt continue from here."""
        self.writes.saved_at = time.monotonic()
        if self.record.losses > 0:
            update.fields["tracked"] = int(self.recovering)
        points = self.progress.points
        update.save(to_bytes(points) if points else None, self.progress.step, self.progress.evaluations)

    def _add_progress(self, batch: int, items: Sequence[Advanced], update: JobUpdate) -> None:
        progress, request = self.progress, self.request
        stepped = progress.advance(batch, items)
        update.fields |= {"evaluations": progress.evaluations, "mean_batch": progress.mean_batch}
        if stepped:
            update.fields["step"] = progress.step
            event = {"step": progress.step, "steps": request.run_steps, "evaluations": progress.evaluations}
            update.events.append({"type": "progress", **event})
        for item in items:
            update.events += frame_events(item, request, self.model)
        if self.model.card.latent is None and request.makes_pictures:
            finished = decode_finished(items, self.model).items()
            self._add_pictures([encode_image(index, own, request, self.numerics) for index, own in finished], update)

    def _add_pictures(self, pictures: Sequence[Picture], update: JobUpdate) -> None:
        for image, data in pictures:
            self.progress.finish(image, self._add_arrays(image.index, update))
            update.images[image.index] = data
            update.fields["images"] = self.progress.images_json()
            update.events.append(image_event(self.id, image))
            if self.progress.arrays:
                update.fields["arrays"] = self.progress.arrays_json()

    def _add_arrays(self, index: int, update: JobUpdate) -> list[ArrayFile]:
        """Add what a finished image has in addition to its picture."""
        if self.request.task == "generate":
            return []
        arrays = arrays_of(self.request, self.model, self.progress.points[index].registers)
        files = [encode_array(index, name, array) for name, array in arrays.items()]
        update.arrays |= {(index, file.name): data for file, data in files}
        update.fields["result"] = json.dumps(result_at_level(self.request, self.model, arrays))
        return [file for file, _ in files]

    def _close_update(self, update: JobUpdate, error: TrajectoryError | None, *, is_urgent: bool) -> None:
        """Add the job's end or, where it is due, a resume point, and keep the update until it is taken."""
        if error is not None:
            update.end("failed", {"code": error.code, "message": str(error)})
        elif not self.unfinished:
            if not self.request.makes_pictures:
                update.fields["result"] = json.dumps(self._likelihood())
            update.end("succeeded")
        elif is_urgent or self.writes.save_is_due:
            self.save(update)
        self.writes.pending, self.writes.is_urgent = update, is_urgent or bool(update.images)

    def _likelihood(self) -> dict[str, Any]:
        points = self.progress.points
        return likelihood_result(self.request, self.model, [points[k].registers for k in range(self.request.n)])
