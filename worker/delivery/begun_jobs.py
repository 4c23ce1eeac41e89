"""A job between its fetch and its first turn: its request is checked, its prompts are encoded, its images are made."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from denoised.jobs.errors import RecordError
from denoised.jobs.record import JobRecord
from denoised.jobs.store.started_attempt import StartedAttempt
from denoised.model.errors import ModelError, PlanError
from denoised.model.serving.card import ModelCard
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.leases import Delivery
from denoised.worker.delivery.pictures.stored_pictures import decode_stored
from denoised.worker.engine.conditioning_requests import conditioning_requests
from denoised.worker.engine.resume import ResumePoint, from_bytes
from denoised.worker.engine.start_picture import InputPictures
from denoised.worker.engine.trajectory import Trajectory, trajectories
from denoised.worker.errors import ModelRemoved, ResumeError

log = logging.getLogger("denoised.worker")

MAX_REGISTERS = 8  # of a plan
RESUME_HEAD_BYTES = 4096


@dataclass(frozen=True)
class BegunJob:
    """A job whose attempt has started, before its images are made.

    Attributes:
        pictures: The PNGs that it starts from, by request field.
    """

    delivery: Delivery
    started: StartedAttempt
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class FetchedJob:
    """A job whose attempt has started, and its unfinished images."""

    delivery: Delivery
    started: StartedAttempt
    trajectories: Sequence[Trajectory] = ()


def prepare_prompts(jobs: Iterable[BegunJob], models: Mapping[str, ServedModel]) -> None:
    """Encode the prompts of jobs together. A job whose prompt cannot be encoded fails later, alone."""
    by_model: dict[str, list[ConditioningRequest]] = {}
    for job in jobs:
        by_model.setdefault(job.delivery.model, []).extend(conditioning_requests(job.started.record.request))
    for model, requests in by_model.items():
        try:
            models[model].prepare(requests)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.warning("prompts are encoded job by job", extra={"model": model, "reason": reason})


def make_images(job: BegunJob, model: ServedModel) -> FetchedJob | Exception:
    """The unfinished images of a job; the error when this worker cannot make them, which concerns this job alone."""
    try:
        images = _trajectories(job.started, model, decode_stored(job.pictures, job.started.record, model.card))
    except Exception as error:
        return error
    return FetchedJob(job.delivery, job.started, images)


def resume_limit(model: ServedModel) -> int:
    """The largest resume point that a job of a model can have, in bytes."""
    card = model.card
    scale = (card.max_pixels or 0) / (card.width * card.height)  # images may be larger than the model's own size
    image = MAX_REGISTERS * 4 * math.prod(model.shape) * max(1.0, scale)
    return RESUME_HEAD_BYTES + card.max_images * (math.ceil(image) + RESUME_HEAD_BYTES)


def failure_of(error: Exception) -> tuple[str, str]:
    """The code and the message of a job that could not be started."""
    if isinstance(error, ModelRemoved):
        return "model_removed", str(error)
    if isinstance(error, RecordError | ModelError):
        return "unservable", str(error)
    return "internal_error", f"{type(error).__name__}: {error}"


def adapt_to_model(record: JobRecord, card: ModelCard) -> JobRecord:
    """A job as this model takes it: if the model has changed since the job was accepted, its classes may have, too.

    Raises:
        PlanError: if the model has no class of that name any more.
    """
    if record.digest is None or record.digest == card.digest:
        return record
    fields = {"job": record.id, "request_id": record.request_id, "accepted": record.digest, "here": card.digest}
    log.warning("the model has changed since the job was accepted", extra=fields)
    name = record.request.label_name
    if name is None:
        return record
    index = card.class_index(name)
    if index is None:
        raise PlanError(f"label = {name!r} is not a class of {card.name}, which has changed since the job was accepted")
    return replace(record, request=replace(record.request, label=index))


def _trajectories(started: StartedAttempt, model: ServedModel, pictures: InputPictures) -> list[Trajectory]:
    """The unfinished images of a job, where they were saved; at their beginning if the resume point is unusable."""
    record, resume_point = started.record, started.resume_point
    try:
        saved: Mapping[int, ResumePoint] = from_bytes(resume_point) if resume_point is not None else {}
        return trajectories(record, model, saved, pictures)
    except ResumeError as error:
        fields = {"job": record.id, "request_id": record.request_id, "reason": str(error)}
        log.warning("resume point unusable", extra=fields)
        return trajectories(record, model, pictures=pictures)
