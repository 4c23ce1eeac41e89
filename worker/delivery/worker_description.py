"""What a worker reports about its engine."""

from __future__ import annotations

from dataclasses import asdict

from denoised.jobs.worker_report import WorkerReport
from denoised.worker.engine.batch import member_limit, reserved_slots
from denoised.worker.loop import Loop


def describe_loop(loop: Loop, name: str, device: str, reported_at: float) -> WorkerReport:
    """The report of a worker whose models are those in memory. reported_at: by Redis' clock."""
    running, pending = loop.load
    return WorkerReport(
        name=name,
        models=[model.card.model_dump() for model in loop.models.values()],
        max_batch=loop.settings.max_batch,
        trajectories=running,
        pending_evaluations=pending,
        evaluations_per_second=loop.speed.per_second,
        reserved=loop.engine.batch.reserved,
        places=loop.engine.batch.max_members,
        batches=_batches(loop),
        paces=loop.speed.paces(),
        decode_seconds=loop.speed.decode_seconds(),
        counters=asdict(loop.counters),
        device=device,
        reported_at=reported_at,
    )


def _batches(loop: Loop) -> dict[str, tuple[int, int, int]]:
    """By model: slots of a turn, those of them that are reserved, and the images that can be admitted."""
    slots = {model: loop.engine.batch.slots.of_model(model) for model in loop.models}
    return {model: (count, reserved_slots(count), member_limit(count)) for model, count in slots.items()}
