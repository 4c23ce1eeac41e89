"""From turns of the engine to Redis: progress, frames, pictures, ends of jobs.

A thread of its own, so that decoding, encoding and Redis writes do not hold up the next
evaluation. Everything of one turn is one round trip. While Redis is away it tries again;
the engine is held up only when the queue between them is full.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor

from worker.engine import Advanced, Turn
from worker.errors import StoreUnavailable, TrajectoryError
from worker.job import Image, SamplingRequest, image_url
from worker.pictures import Pixels, encode, encode_frame
from worker.store import Store, Write

log = logging.getLogger("denoised.worker")

RETRY_SECONDS = 0.25


class Decoder(Protocol):
    """The part of a served model that the publisher calls."""

    def decode(self, x0: Tensor) -> Pixels: ...


@dataclass
class ActiveJob:
    """What this worker's attempt at a job has told the world so far."""

    id: str
    request: SamplingRequest
    attempt: int
    model: Decoder
    numerics: str
    steps_reached: list[int] = field(default_factory=list)
    images: dict[int, Image] = field(default_factory=dict)
    step: int = 0
    writes: int = 0
    evaluations: int = 0
    rows: int = 0
    turns: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self.steps_reached = [0] * self.request.n

    @property
    def mean_batch(self) -> float:
        """Rows of the evaluations it took part in, on average."""
        return self.rows / max(self.turns, 1)


class Publisher(threading.Thread):
    """Writes what turns bring.

    on_over(job, given_back) is called, in this thread, when a job of this worker has ended, was
    canceled or taken by another attempt (given_back False), or was put back into the queue.
    """

    def __init__(self, store: Store, on_over: Callable[[ActiveJob, bool], None], depth: int = 64) -> None:
        super().__init__(name="publisher", daemon=True)
        self._store = store
        self._on_over = on_over
        self._queue: queue.Queue[tuple[Callable[[], None], list[ActiveJob]] | None] = queue.Queue(depth)
        self._abandon = threading.Event()

    def publish(self, turn: Turn, jobs: list[ActiveJob]) -> None:
        """Queue a turn's outcome; `jobs` are those of its trajectories."""
        self._queue.put((lambda: self._publish(turn, jobs), jobs))

    def fail(self, job: ActiveJob, code: str, message: str) -> None:
        """Queue the failure of a job."""
        self._queue.put((lambda: self._fail(job, code, message), [job]))

    def give_back(self, job: ActiveJob) -> None:
        """Queue that this worker stops at a job which another is to take up."""
        self._queue.put((lambda: self._give_back(job), [job]))

    def close(self, timeout: float) -> None:
        """Write what is queued, for at most `timeout` seconds, then end."""
        end = time.monotonic() + timeout
        try:
            self._queue.put(None, timeout=timeout)
            self.join(max(0.0, end - time.monotonic()))
        except queue.Full:
            log.error("%d turns could not be written before the end", self._queue.qsize())
        self._abandon.set()

    def run(self) -> None:
        while (item := self._queue.get()) is not None:
            action, jobs = item
            try:
                action()
            except Exception as error:
                log.exception("a turn could not be published")
                self._fail_all(jobs, error)

    def _publish(self, turn: Turn, jobs: list[ActiveJob]) -> None:
        going = [job for job in jobs if not job.over]
        writes = [self._write_of(job, turn) for job in going]
        for job, write, written in zip(going, writes, self._apply(writes), strict=True):
            if write.status is not None or not written:
                job.over = True
                self._on_over(job, False)

    def _write_of(self, job: ActiveJob, turn: Turn) -> Write:
        """One job's part of a turn, its end included."""
        job.turns += 1
        job.rows += turn.rows
        write = _numbered(job)
        error = next((error for trajectory, error in turn.failed if trajectory.job == job.id), None)
        try:
            self._progress(job, [item for item in turn.advanced if item.trajectory.job == job.id], write)
        except Exception as problem:
            log.exception("job %s: a picture could not be encoded", job.id)
            error = TrajectoryError("encoding_failed", f"{type(problem).__name__}: {problem}")
        if error is not None:
            write.end("failed", {"code": error.code, "message": str(error)})
        elif len(job.images) == job.request.n:
            write.end("succeeded")
        return write

    def _progress(self, job: ActiveJob, items: list[Advanced], write: Write) -> None:
        for item in items:
            job.evaluations += 2 if item.trajectory.guided else 1
            job.steps_reached[item.trajectory.index] = item.step
        write.fields |= {"evaluations": job.evaluations, "mean_batch": job.mean_batch}
        reached = min(job.steps_reached)
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
        write.images[index] = data
        write.fields["images"] = _images_json(job)
        event = {"index": index, "seed": image.seed, "sha256": image.sha256, "url": image_url(job.id, index)}
        write.events.append({"type": "image", **event})

    def _fail(self, job: ActiveJob, code: str, message: str) -> None:
        if job.over:
            return
        write = _numbered(job)
        write.end("failed", {"code": code, "message": message})
        self._apply([write])
        job.over = True
        self._on_over(job, False)

    def _fail_all(self, jobs: list[ActiveJob], error: Exception) -> None:
        """After a defect of our own: no job may be left behind without an end."""
        for job in jobs:
            try:
                self._fail(job, "internal_error", f"{type(error).__name__}: {error}")
            except Exception:
                log.exception("job %s: its failure could not be written; its lease will run out", job.id)

    def _give_back(self, job: ActiveJob) -> None:
        if job.over:
            return
        write = _numbered(job)
        write.status = "queued"
        write.fields = {"step": 0}
        write.events = [{"type": "queued", "queue_position": 0, "eta_seconds": None}]
        (written,) = self._apply([write])
        job.over = True
        self._on_over(job, written)

    def _apply(self, writes: list[Write]) -> list[bool]:
        """Until Redis took it; the store applies a repeated write once."""
        waiting_since: float | None = None
        while not self._abandon.is_set():
            try:
                return self._store.write_all(writes)
            except StoreUnavailable as error:
                if waiting_since is None:
                    waiting_since = time.monotonic()
                    log.warning("progress waits: %s", error)
                self._abandon.wait(RETRY_SECONDS)
        return [False] * len(writes)


def _numbered(job: ActiveJob) -> Write:
    job.writes += 1
    return Write(job.id, attempt=job.attempt, number=job.writes, image_count=job.request.n)


def _images_json(job: ActiveJob) -> str:
    return json.dumps([asdict(job.images[index]) for index in sorted(job.images)])
