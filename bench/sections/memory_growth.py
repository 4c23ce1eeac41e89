"""The section about memory: whether a worker's memory grows while it runs thousands of jobs."""

from __future__ import annotations

import asyncio
from itertools import islice

from bench.benchmark_run import BenchmarkRun
from bench.errors import BenchError
from bench.load.closed_loop import counted_loop
from bench.load.processes import resident_bytes
from bench.load.servers import start_denoised, worker_pid
from bench.load.workloads import SHORT_JOBS
from bench.results.sample_names import AFTER_WARM_UP, DENOISED, GROWTH, MEGABYTES
from bench.results.samples import SampleRecorder

CLIENTS = 16
WARM_UP_JOBS = 500  # after these, memory should not grow any more
SAMPLE_EVERY = 100
LOG_EVERY = 1000


def measure_memory(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Run short jobs on one worker, and sample its resident memory after every hundred of them."""
    requests = SHORT_JOBS.requests(0)
    with start_denoised(run.folder, "memory") as server:
        worker = worker_pid(server)
        for done in range(SAMPLE_EVERY, run.length.jobs + 1, SAMPLE_EVERY):
            asyncio.run(counted_loop(server.url, CLIENTS, list(islice(requests, SAMPLE_EVERY))))
            if done >= WARM_UP_JOBS:
                recorder.add(AFTER_WARM_UP, DENOISED, MEGABYTES, resident_bytes(worker) / 1e6)
            if done % LOG_EVERY == 0:
                run.log(f"{done} jobs, {resident_bytes(worker) / 1e6:.0f} MB")
        if worker_pid(server) != worker:
            raise BenchError("the worker was replaced during the memory measurement")
    first, *rest = recorder.values[AFTER_WARM_UP, DENOISED, MEGABYTES]
    recorder.add(f"{run.length.jobs:,} jobs", DENOISED, GROWTH, 100 * (max(rest) / first - 1))
