"""What a worker has capacity for: the slots of its batch, less the finished images that wait for the decoder."""

from __future__ import annotations

from collections.abc import Collection

from denoised.worker.delivery.capacity import Capacity
from denoised.worker.delivery.leases import Leases
from denoised.worker.engine.batch import RunningBatch
from denoised.worker.engine.trajectory import Trajectory


def capacity_of(model: str, batch: RunningBatch[Trajectory], leases: Leases, shared: Collection[str]) -> Capacity:
    """A model's free slots. Finished images take slots, too, so that they do not pile up before the decoder.

    shared: the models that other live workers serve, too.
    """
    waiting = undecoded([model], batch, leases)
    has_room = batch.has_room_for_others(model) and waiting < batch.slots.of_model(model)
    present = {member.model for member in batch.members}
    deferred = model in shared and bool(present) and model not in present
    images, passed_over = max(0, batch.free_slots(model) - waiting), batch.owners_at_limit(model)
    return Capacity(images, has_room, deferred, passed_over)


def undecoded(models: Collection[str], batch: RunningBatch[Trajectory], leases: Leases) -> int:
    """How many images of these models have left the batch but have no picture yet: the decoder has them."""
    held = [lease.attempt for lease in leases.all() if lease.attempt.model.card.latent is not None]
    unfinished = sum(attempt.unfinished for attempt in held if attempt.request.model in models)
    jobs = {attempt.id for attempt in held}
    members = sum(image.job in jobs and image.model in models for image in batch.members)
    return max(0, unfinished - members)
