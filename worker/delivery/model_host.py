"""What the thread that loads models changes of the worker around it: names, queues and their registration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from denoised.jobs.store.models.model_claims import ModelClaim
from denoised.worker.delivery.leases import Delivery, Leases
from denoised.worker.delivery.listener import Listener
from denoised.worker.delivery.model_names import ModelNames
from denoised.worker.delivery.worker_queues import WorkerQueues


class ModelHost:
    """See `worker.models.model_loader.Host`.

    take: takes the next job of a model.
    changed(): registers the worker with the queues that it has now.
    waits: whether jobs wait for a model.
    leases: on the jobs that the worker holds.
    last_used: when a job of a model came last, by `time.monotonic`.
    """

    def __init__(
        self,
        names: ModelNames,
        queues: WorkerQueues,
        listener: Listener,
        take: Callable[[str], Delivery | None],
        changed: Callable[[], None],
        waits: Callable[[str], bool],
        leases: Leases,
        last_used: Mapping[str, float],
    ) -> None:
        self._names = names
        self._queues = queues
        self._listener = listener
        self._take = take
        self._changed = changed
        self._waits = waits
        self._leases = leases
        self._last_used = last_used

    def claim(self, model: str, digest: str) -> ModelClaim | None:
        """Claim the name of one more model; the claim of another worker that serves other files, if there is one."""
        return self._names.add(model, digest)

    def switch(self, model: str, digest: str, *, drained: bool) -> str:
        """A step toward another digest of a model."""
        return self._names.switch(model, digest, drained=drained)

    def keep(self, model: str) -> None:
        """Give up a switch."""
        self._names.keep(model)

    def open_queue(self, model: str) -> None:
        """Take jobs of one more model."""
        self._queues.add(model)
        self._update()

    def close_queue(self, model: str) -> None:
        """Take no more jobs of a model, and give up its name."""
        self._queues.remove(model)
        self._names.drop(model)
        self._update()

    def take(self, model: str) -> Delivery | None:
        """The next waiting job of any model."""
        return self._take(model)

    def waits(self, model: str) -> bool:
        """Whether jobs wait for a model."""
        return self._waits(model)

    def is_used(self, model: str) -> bool:
        """Whether a job holds a model."""
        return any(lease.delivery.model == model for lease in self._leases.all())

    def used_at(self, model: str) -> float:
        """When a job of a model came last, by `time.monotonic`; 0 if none ever did."""
        return self._last_used.get(model, 0.0)

    def _update(self) -> None:
        self._listener.listen_to(queue.name for queue in self._queues.queues)
        self._changed()
