"""Which jobs enter the running batch: what it has capacity for, and what happens to a job that was fetched for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.attempt import AttemptState
from denoised.worker.delivery.begun_jobs import FetchedJob
from denoised.worker.delivery.capacity import Capacity
from denoised.worker.delivery.leases import Lease, Leases
from denoised.worker.delivery.publisher import Publisher
from denoised.worker.delivery.settlement import Settlement
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.quarantine import Quarantine

log = logging.getLogger("denoised.worker")


class BatchAdmission:
    """Admits jobs to an engine's batch, and returns them to their queues. The engine's thread alone calls it."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        engine: Engine,
        leases: Leases,
        publisher: Publisher,
        settlement: Settlement,
        quarantine: Quarantine,
    ) -> None:
        self._models = models
        self._engine = engine
        self._leases = leases
        self._publisher = publisher
        self._settlement = settlement
        self._quarantine = quarantine

    # Capacity

    def capacity(self, shared: AbstractSet[str]) -> dict[str, Capacity]:
        """What there is capacity for, by model; {} while a job has this worker to itself.

        shared: the models that other live workers serve, too.
        """
        if self._quarantine.occupied:
            return {}
        return {model: self._capacity_of(model, model in shared) for model in self._models}

    def _capacity_of(self, model: str, shared: bool) -> Capacity:
        """A model's free slots. Finished images take slots, too, so that they do not pile up before the decoder."""
        batch, undecoded = self._engine.batch, self.undecoded(model)
        has_room = batch.has_room_for_others(model) and undecoded < batch.slots.of_model(model)
        present = {member.model for member in batch.members}
        deferred = shared and bool(present) and model not in present
        images, passed_over = max(0, batch.free_slots(model) - undecoded), batch.owners_at_limit(model)
        return Capacity(images, has_room, deferred, passed_over)

    def undecoded(self, *models: str) -> int:
        """How many images of these models have left the batch but have no picture yet: the decoder has them."""
        held = [lease.attempt for lease in self._leases.all() if lease.attempt.model.card.latent is not None]
        unfinished = sum(attempt.unfinished for attempt in held if attempt.request.model in models)
        jobs = {attempt.id for attempt in held}
        members = sum(image.job in jobs and image.model in models for image in self._engine.batch.members)
        return max(0, unfinished - members)

    # Jobs

    def admit(self, job: FetchedJob) -> bool:
        """Hold a job's lease, and start its attempt. False if it goes back to its queue at once."""
        record, occupied = job.started.record, self._quarantine.occupied
        lease = self.hold(job)
        attempt = lease.attempt
        self._engine.batch.evict(record.id)
        attempt.resume(job.trajectories)
        if occupied:
            self.requeue(lease)  # it was fetched just before the quarantine began
            return False
        if attempt.quarantined:
            for other in self._leases.all():
                if other is not lease:
                    self.requeue(other)
            self._quarantine.wait(lease, job.trajectories)
        else:
            self._begin(job.trajectories)
        fields = {"model": record.request.model, "images": record.request.n, "attempt": record.attempt}
        log.info("job started", extra={**attempt.log_fields, **fields})
        return True

    def begin_quarantined(self) -> None:
        """Admit the images of the job in quarantine as soon as it is the only one here."""
        self._begin(self._quarantine.take_ready())

    def clear(self) -> None:
        """Never admit the images of the job in quarantine."""
        self._quarantine.clear()

    def hold(self, job: FetchedJob) -> Lease:
        """Hold a job's lease without starting its attempt."""
        model = self._models[job.delivery.model]
        attempt = AttemptState.begin(job.started, model, model.card.numerics)
        lease = Lease(job.delivery, attempt, job.started.record.created_at)
        replaced = self._leases.add(lease)
        if replaced is not None:
            # Our lease had expired while this worker was slow, and RQ delivered the job to us again.
            replaced.attempt.over = True
            self._settlement.release(replaced)
        return lease

    def requeue(self, lease: Lease) -> None:
        """Evict a job, and return it to its queue with a resume point."""
        self._engine.batch.evict(lease.attempt.id)
        self._publisher.requeue(lease.attempt)

    def _begin(self, images: Sequence[Trajectory]) -> None:
        """Admit images to the batch; those that an earlier attempt has finished go to the decoder."""
        self._engine.admit([image for image in images if not image.finished])
        finished = {image.index: image.registers[0] for image in images if image.finished}
        if finished and (lease := self._leases.get(images[0].job)) is not None:
            self._publisher.decode(lease.attempt, finished)
