"""From turns of the engine to Redis: progress, frames, pictures, ends of jobs.

A thread of its own, so that decoding, encoding and Redis writes do not hold up the next
evaluation. Everything of one turn is one round trip. While Redis is away it tries again;
the engine is held up only when the queue between them is full.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor

from worker.engine import Advanced, Turn
from worker.errors import StoreUnavailable, TrajectoryError
from worker.job import Image, JobRecord, SamplingRequest, image_url
from worker.pictures import Pixels, encode, encode_frame
from worker.resume import Saved, to_bytes
from worker.store import Store, Written
from worker.trajectory import Trajectory
from worker.writes import Write

log = logging.getLogger("denoised.worker")

RETRY_SECONDS = 0.25
TELL_SECONDS = 0.25  # between two writes of a job that goes on while nobody watches
LOOK_SECONDS = 0.25  # how often who waits for room in the queue looks whether it is worth it
SOON_SECONDS = 0.1  # between the first resume points of an attempt
SAVE_SECONDS = 1.0  # between two resume points of a job, so that with all delays less than 2 s are lost with a worker
SURE_SECONDS = TELL_SECONDS + 0.25  # a worker that is lost has done more than it had written: less than in this time


Item = tuple[Callable[[], None], list["ActiveJob"]]


class Decoder(Protocol):
    """The part of a served model that the publisher calls."""

    def decode(self, x0: Tensor) -> Pixels: ...


@dataclass
class ActiveJob:
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
    model: Decoder
    numerics: str
    request_id: str | None = None
    reached: list[int] = field(default_factory=list)
    images: dict[int, Image] = field(default_factory=dict)
    points: dict[int, Saved] = field(default_factory=dict)
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
    draft: Write | None = None
    over: bool = False
    begun_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def begun(cls, record: JobRecord, model: Decoder, numerics: str) -> ActiveJob:
        """An attempt that has just begun, none of whose images is on its way yet."""
        return cls(
            record.id,
            record.request,
            record.attempt,
            model,
            numerics,
            record.request_id,
            reached=[0] * record.request.n,
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
                self.points[trajectory.index] = Saved(trajectory.row, trajectory.registers)
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
        """Rows of the evaluations it took part in, on average."""
        return self.rows / max(self.turns, 1)


class Publisher(threading.Thread):
    """Writes what turns bring: at once of jobs that are watched, of the others, as long as they go on, together every
    `TELL_SECONDS`. No event is left out for that.

    on_over(job, given_back) is called, in this thread, when a job of this worker has ended, was
    canceled or taken by another attempt (given_back False), or was put back into the queue. Where a job's images are
    is saved every `SAVE_SECONDS` (sooner at first, or every turn: see `ActiveJob`), so that another worker can go on
    from there.
    """

    def __init__(self, store: Store, on_over: Callable[[ActiveJob, bool], None], depth: int = 64) -> None:
        super().__init__(name="publisher", daemon=True)
        self._store = store
        self._on_over = on_over
        self._queue: queue.Queue[Item | None] = queue.Queue(depth)
        self._abandon = threading.Event()
        self._told_at = -math.inf  # when even those were written whom nobody watches
        self._patient_until = math.inf

    def publish(self, turn: Turn, jobs: list[ActiveJob]) -> None:
        """Queue a turn's outcome; `jobs` are those of its trajectories."""
        self._put((lambda: self._publish(turn, jobs), jobs))

    def fail(self, job: ActiveJob, code: str, message: str) -> None:
        """Queue the failure of a job."""
        self._put((lambda: self._fail(job, code, message), [job]))

    def give_back(self, job: ActiveJob) -> None:
        """Queue that this worker stops at a job which another is to take up."""
        self._put((lambda: self._give_back(job), [job]))

    def let_go(self, job: ActiveJob) -> None:
        """Queue that a job has ended elsewhere (it was canceled): nothing more is written of it."""
        self._put((lambda: self._let_go(job), [job]))

    def settle(self) -> None:
        """Wait until all is written, but not for long. For jobs that are accused: what their worker had done when it is
        lost, too, is then known, and a job that ends its worker at a certain turn is found out by that."""
        with self._queue.all_tasks_done:
            self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, SURE_SECONDS)

    def wait_no_longer_than(self, moment: float) -> None:
        """From then (`time.monotonic`) on nobody waits for room in the queue: what finds none is lost, and its jobs'
        leases run out. For a worker that is told to stop while Redis is away."""
        self._patient_until = moment

    def close(self, timeout: float) -> bool:
        """Write what is queued, for at most `timeout` seconds, then end. Whether all of it was written."""
        end = time.monotonic() + timeout
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout)
            self.join(max(0.0, end - time.monotonic()))
        done = not self.is_alive()
        if not done:
            log.error("%d turns could not be written before the end", self._queue.qsize() + 1)
        self._abandon.set()
        return done

    def _put(self, item: Item) -> None:
        while time.monotonic() < self._patient_until:
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=LOOK_SECONDS)
                return

    def run(self) -> None:
        while (item := self._queue.get()) is not None:
            action, jobs = item
            try:
                action()
            except Exception as error:
                log.exception("a turn could not be published")
                self._fail_all(jobs, error)
            self._queue.task_done()

    def _publish(self, turn: Turn, jobs: list[ActiveJob]) -> None:
        going = [job for job in jobs if not job.over]
        outcome = _by_job(turn)
        for job in going:
            job.draft = self._noted(job, turn.rows, *outcome[job.id])
        told = self._is_time()
        due = [job for job in going if told or job.watched or _presses(job.draft)]
        writes = [_drafted(job) for job in due]
        for job, write, written in zip(due, writes, self._apply(writes), strict=True):
            if write.status is not None or not written:
                self._end(job)
                continue
            job.watched = job.watched or written is Written.WATCHED
            if "losses" in write.fields:
                job.apart = job.accused = False

    def _is_time(self) -> bool:
        """Whether this turn is written for those, too, whom nobody watches."""
        if time.monotonic() - self._told_at < TELL_SECONDS:
            return False
        self._told_at = time.monotonic()
        return True

    def _noted(self, job: ActiveJob, rows: int, items: list[Advanced], error: TrajectoryError | None) -> Write:
        """The job's draft with its part of a turn, its end included."""
        job.turns += 1
        job.rows += rows
        write = _drafted(job)
        try:
            self._progress(job, items, write)
        except Exception as problem:
            log.exception("picture could not be encoded", extra=job.named)
            error = TrajectoryError("encoding_failed", f"{type(problem).__name__}: {problem}")
        if error is not None:
            write.end("failed", {"code": error.code, "message": str(error)})
        elif len(job.images) == job.request.n:
            write.end("succeeded")
        elif job.accused or time.monotonic() - job.saved_at >= job.unsaved_seconds:
            _save(job, write)
        return write

    def _progress(self, job: ActiveJob, items: list[Advanced], write: Write) -> None:
        for item in items:
            job.evaluations += 2 if item.trajectory.guided else 1
            job.reached[item.trajectory.index] = item.step
            job.points[item.trajectory.index] = Saved(item.row, item.registers)
        write.fields |= {"evaluations": job.evaluations, "mean_batch": job.mean_batch}
        reached = min(job.reached)
        if reached > job.step:
            job.step = reached
            write.fields["step"] = reached
            progress = {"step": reached, "steps": job.request.steps, "evaluations": job.evaluations}
            write.events.append({"type": "progress", **progress})
        for item in items:
            write.events += self._frames(job, item)
            if item.final is not None:
                self._finish_image(job, item, item.final, write)

    def _frames(self, job: ActiveJob, item: Advanced) -> list[dict[str, Any]]:
        every = job.request.preview_every
        if not every or not item.completed or item.step % every:
            return []
        tensors = {"x0": item.believed, "xt": item.seen}
        kinds = tensors if job.request.preview == "both" else [job.request.preview]
        return [
            {
                "type": "frame",
                "image": item.trajectory.index,
                "step": item.step,
                "steps": job.request.steps,
                "t": item.t,
                "sigma": item.sigma,
                "kind": kind,
                "media_type": "image/png",
                "data": base64.b64encode(encode_frame(job.model.decode(tensors[kind]))).decode(),
            }
            for kind in kinds
        ]

    def _finish_image(self, job: ActiveJob, item: Advanced, final: Tensor, write: Write) -> None:
        request, index = job.request, item.trajectory.index
        pixels = job.model.decode(final)
        data = encode(pixels, request.format, request.parameters(index, job.numerics))
        image = Image(
            index=index,
            seed=request.seed + index,
            width=pixels.shape[1],
            height=pixels.shape[0],
            format=request.format,
            sha256=hashlib.sha256(data).hexdigest(),
        )
        job.images[index] = image
        del job.points[index]
        write.images[index] = data
        write.fields["images"] = _images_json(job)
        event = {"index": index, "seed": image.seed, "sha256": image.sha256, "url": image_url(job.id, index)}
        write.events.append({"type": "image", **event})

    def _fail(self, job: ActiveJob, code: str, message: str) -> None:
        if job.over:
            return
        write = _drafted(job)
        write.end("failed", {"code": code, "message": message})
        self._apply([write])
        self._end(job)

    def _fail_all(self, jobs: list[ActiveJob], error: Exception) -> None:
        """After a defect of our own: no job may be left behind without an end."""
        for job in jobs:
            try:
                self._fail(job, "internal_error", f"{type(error).__name__}: {error}")
            except Exception:
                log.exception("failure could not be written; the lease will run out", extra=job.named)

    def _give_back(self, job: ActiveJob) -> None:
        if job.over:
            return
        write = _drafted(job)
        write.status = "queued"
        write.fields |= {"step": job.step, "evaluations": job.evaluations}
        _save(job, write)
        write.events.append({"type": "queued", "queue_position": 0, "eta_seconds": None})
        (written,) = self._apply([write])
        self._end(job, given_back=bool(written))

    def _let_go(self, job: ActiveJob) -> None:
        if not job.over:
            self._end(job)

    def _end(self, job: ActiveJob, given_back: bool = False) -> None:
        job.over = True
        self._on_over(job, given_back)

    def _apply(self, writes: list[Write]) -> list[Written]:
        """Until Redis took it; the store applies a repeated write once."""
        if not writes:
            return []
        waiting_since: float | None = None
        while not self._abandon.is_set():
            try:
                return self._store.write_all(writes)
            except StoreUnavailable as error:
                if waiting_since is None:
                    waiting_since = time.monotonic()
                    log.warning("progress waits: %s", error)
                self._abandon.wait(RETRY_SECONDS)
        return [Written.REFUSED] * len(writes)


def _by_job(turn: Turn) -> dict[str, tuple[list[Advanced], TrajectoryError | None]]:
    """What a turn brought for each job: its images that moved, and the first failure."""
    errors = {trajectory.job: error for trajectory, error in reversed(turn.failed)}
    items: dict[str, list[Advanced]] = {job: [] for job in errors}
    for item in turn.advanced:
        items.setdefault(item.trajectory.job, []).append(item)
    return {job: (moved, errors.get(job)) for job, moved in items.items()}


def _drafted(job: ActiveJob) -> Write:
    """What has happened and is not written yet; from here on the caller's."""
    draft, job.draft = job.draft, None
    if draft is None:
        job.writes += 1
        draft = Write(job.id, attempt=job.attempt, number=job.writes, image_count=job.request.n)
    return draft


def _presses(draft: Write | None) -> bool:
    """Whether somebody waits for it; for the first of an attempt in any case: the reply tells whether it is watched."""
    if draft is None:
        return False
    return draft.number == 1 or draft.status is not None or draft.resume is not None or bool(draft.images)


def _save(job: ActiveJob, write: Write) -> None:
    """Have another attempt go on from here. That clears the job of its worker's loss once it gets on."""
    job.saved_at = time.monotonic()
    if job.points:
        write.save(to_bytes(job.points), job.step, job.evaluations)
    if job.gets_on():
        write.fields["losses"] = 0


def _images_json(job: ActiveJob) -> str:
    return json.dumps([asdict(job.images[index]) for index in sorted(job.images)])
