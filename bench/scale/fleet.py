"""What a fleet of GPUs asks of one store, computed from the measured costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.results.samples import SampleKey, SampleTable
from bench.scale import scale_names as names

FLEETS = (10, 1_000, 100_000)  # GPUs


@dataclass(frozen=True)
class Workload:
    """What each GPU does, and what one store can do. All of these are assumptions, not measurements.

    jobs_per_second: pictures of a GPU.
    steps: of a job; every one is counted as if a client followed the job.
    watched: part of the jobs that send frames.
    frames: of such a job.
    frame_bytes, picture_bytes: of a preview, and of a finished picture.
    kept_seconds: for which a picture is kept.
    waiting_seconds: of work that waits.
    """

    jobs_per_second: float = 2.0
    steps: int = 25
    watched: float = 0.2
    frames: int = 5
    frame_bytes: float = 10_000
    picture_bytes: float = 400_000
    kept_seconds: float = 86_400
    waiting_seconds: float = 60

    @property
    def frames_per_job(self) -> float:
        """Averaged over all jobs."""
        return self.watched * self.frames


@dataclass(frozen=True)
class Resource:
    """Something of a store that a fleet uses up.

    per_gpu: of what one GPU needs.
    limit: what one store has.
    remedy: what moves the wall.
    """

    name: str
    unit: str
    per_gpu: float
    limit: float
    remedy: str

    @property
    def gpus(self) -> float:
        """The GPUs that one store serves."""
        return self.limit / self.per_gpu if self.per_gpu else math.inf

    def stores(self, gpus: int) -> int:
        """The stores that so many GPUs need."""
        return max(1, math.ceil(gpus / self.gpus))


def resources(table: SampleTable, load: Workload) -> list[Resource]:
    """The resources of one store, the one that is used up first ahead; [] if the costs are not measured."""
    try:
        cpu, received, sent = (_per_gpu(table, load, each) for each in (names.CPU, names.BYTES_IN, names.BYTES_OUT))
        waiting = _value(table, names.JOB, names.MEMORY)
    except KeyError:
        return []
    files = load.jobs_per_second * (load.picture_bytes + load.frames_per_job * load.frame_bytes)
    kept = load.kept_seconds * files
    found = [
        Resource(
            "memory for results", "GB", kept / 1e9, 64,
            "results in a bucket (`DENOISED_RESULTS_URL`), or a shorter `DENOISED_RESULT_TTL`",
        ),
        Resource(
            "memory for waiting jobs", "GB", waiting * load.jobs_per_second * load.waiting_seconds / 1e9, 64,
            "`DENOISED_MAX_QUEUE`",
        ),
        Resource("processor", "cores", cpu / 1e6, 1, "shards by model and key; fewer frames and followed jobs"),
        Resource(
            "network", "GB/s", (received + sent + 2 * files) / 1e9, 1.25, "shards by model and key; fewer frames"
        ),
    ]  # fmt: skip
    return sorted(found, key=lambda each: each.gpus)


def _per_gpu(table: SampleTable, load: Workload, quantity: str) -> float:
    """What one GPU costs the store in a second, of a quantity of `OPERATION_QUANTITIES`."""
    job, step, frame, idle = (
        _value(table, condition, quantity) for condition in (names.JOB, names.STEP, names.FRAME, names.IDLE_WORKER)
    )
    return load.jobs_per_second * (job + load.steps * step + load.frames_per_job * frame) + idle


def _value(table: SampleTable, condition: str, quantity: str) -> float:
    return table[SampleKey(names.OPERATIONS, condition, names.STORE, quantity)].median
