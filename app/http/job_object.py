"""The job object of the HTTP API."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from denoised.jobs.record import ArrayFile, JobRecord, QueueEstimate, array_url, image_url


def job_object(job: JobRecord, estimate: QueueEstimate | None = None) -> dict[str, Any]:
    """The job as clients see it. estimate: when the job will run, if it is queued."""
    request, estimate = job.request, estimate or QueueEstimate()
    base = f"/jobs/{job.id}"
    return {
        "id": job.id,
        "status": job.status,
        "model": request.model,
        "label": request.label_name,
        **request.members(),
        "task": request.task,
        "t": request.t,
        "sigma": request.sigma,
        "x_t": request.x_t,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "queue_position": estimate.queue_position,
        "eta_seconds": estimate.eta_seconds,
        "progress": {"step": job.step, "steps": request.run_steps, "fraction": request.fraction(job.step)},
        "attempt": job.attempt,
        "images": [{**asdict(image), "url": image_url(job.id, image.index)} for image in job.images],
        "arrays": [_array_object(job.id, array) for array in job.arrays],
        "result": dict(job.result) if job.result is not None else None,
        "timing": _timing(job),
        "numerics": job.numerics,
        "error": dict(job.error) if job.error else None,
        "warnings": [asdict(warning) for warning in job.warnings],
        "links": {
            "self": base,
            "events": f"{base}/events",
            "cancel": base,
            "animation": f"{base}/animation",
        },
    }


def _array_object(job_id: str, array: ArrayFile) -> dict[str, Any]:
    """An array as clients see it."""
    return {
        "index": array.index,
        "name": array.name,
        "shape": array.shape,
        "dtype": "float32",
        "sha256": array.sha256,
        "url": array_url(job_id, array),
        "picture": array_url(job_id, array, "png"),
    }


def _timing(job: JobRecord) -> dict[str, Any]:
    started, finished = job.started_at, job.finished_at
    return {
        "queued": _seconds(job.created_at, started),
        "running": _seconds(started, finished),
        "evaluations": job.evaluations,
        "mean_batch": job.mean_batch,
    }


def _seconds(start: float | None, end: float | None) -> float | None:
    """Between two moments by Redis' clock, which may have been set back between them; None before the second."""
    return max(0.0, end - start) if start is not None and end is not None else None
