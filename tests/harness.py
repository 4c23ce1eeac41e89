"""A Valkey, its queue, and real workers with fake models as processes that tests kill, stop and restart."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rq import Queue
from rq.serializers import JSONSerializer

from denoised.app.admission.queue.job_queue import JobQueue
from denoised.jobs.record import JobRecord, QueueEstimate
from denoised.jobs.redis.connection import connect
from denoised.jobs.results.result_store import ResultStore
from denoised.jobs.results.settings import ResultSettings
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.store.redis_keys import input_picture
from denoised.jobs.store.store import IN_REDIS, Store
from tests.fork_server import Popen

TIMEOUT = 120.0  # seconds; only a hang reaches it
NO_PICTURES: Mapping[str, bytes] = {}
LABELS = ["apple", "bean", "carrot", "daikon"]


def request(**fields: Any) -> SamplingRequest:
    """A request for a fake model: four ddim steps without a label by default."""
    given = {
        "model": "fake",
        "label": None,
        "n": 1,
        "seed": 7,
        "sampler": "ddim",
        "steps": 4,
        "eta": 0.0,
        "guidance_scale": 1.0,
        "format": "png",
        **fields,
    }
    label = given["label"]
    return SamplingRequest(label_name=None if label is None else LABELS[label], **given)


def start(
    store: Store, job_id: str, worker: str = "worker", numerics: str = "fake", execution: str | None = None
) -> int:
    """Begin an attempt as a worker does; its number, 0 when the job is over."""
    begun = store.attempts.start(job_id, worker, numerics, execution)
    return 0 if begun is None else begun.record.attempt


def write_model(folder: Path, digest: str, seconds: float = 0.0, refused: str = "", weight: int = 1) -> Path:
    """A folder that workers of fake models load, in `seconds`, or refuse. An older one is replaced."""
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir(parents=True)
    (part / "model.json").write_text(
        json.dumps({"digest": digest, "seconds": seconds, "refused": refused, "weight": weight})
    )
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        folder.rename(old)
    part.rename(folder)
    return folder


def _all_threads_stopped(pid: int) -> bool:
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state == "T" for state in states)


@dataclass
class WorkerProcess:
    """A worker's process, a child of the launcher (tests/fake_workers.py)."""

    pid: int
    folder: Path

    def signal(self, signum: int) -> None:
        """Send a signal. On Linux, wait until SIGSTOP has stopped all threads; a busy machine takes a while."""
        os.kill(self.pid, signum)
        while signum == signal.SIGSTOP and not _all_threads_stopped(self.pid):
            time.sleep(0.005)

    def exit_code(self) -> int | None:
        """None while it lives."""
        path = self.folder / f"{self.pid}.exit"
        return int(path.read_text()) if path.exists() else None

    def wait(self) -> int:
        end = time.monotonic() + TIMEOUT
        while (code := self.exit_code()) is None:
            assert time.monotonic() < end, f"worker {self.pid} does not end"
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def resident(self) -> float:
        """MiB of its memory that are there (Linux)."""
        (line,) = [line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if "VmRSS" in line]
        return int(line.split()[1]) / 1024

    def evaluations(self) -> list[tuple[float, list[float]]]:
        """The time of each evaluation and the fingerprints of its rows; a line cut short by SIGKILL is left out."""
        lines = (self.folder / f"{self.pid}.rows").read_text().split("\n")[:-1]
        return [(moment, rows) for moment, rows in map(json.loads, lines)]


class Harness:
    """A Valkey's queue, and workers as processes. workers_url: how these reach it, if otherwise than we do."""

    def __init__(
        self,
        url: str,
        folder: Path,
        workers_url: str | None = None,
        result_ttl: int = 86_400,
        results: ResultSettings = IN_REDIS,
    ) -> None:
        self.client = connect(url, timeout=30.0)
        result_store = ResultStore(results.url, 5.0) if results.url is not None else None
        self.store = Store(self.client, result_ttl, results, result_store)
        self._results = results
        self.queue = JobQueue(self.client, self.store, max_attempts=3)
        self.workers: list[WorkerProcess] = []
        self._url = workers_url or url
        self._result_ttl = result_ttl
        self._folder = folder
        self._log = (folder / "workers.log").open("ab")
        self._launcher = Popen(
            [sys.executable, "-m", "tests.fake_workers", str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def worker(
        self,
        *models: str,
        seconds: float = 0.0,
        lease: float = 30.0,
        job_timeout: float = 600.0,
        max_batch: int = 16,
        kill_class: int | None = None,
        kill_below: float = 0.0,
        oom_class: int = -1,
        max_rows: int = 1 << 20,
        min_pipelined_images: int | None = None,
        clock_ahead: float = 0.0,
        more_mib: int | None = None,
        digest: str = "",
        unstartable_class: int = -1,
        decode_seconds: float | None = None,
        decoded_at_once: int = 16,
        fatal_class: int = -1,
        corrupting_class: int = -1,
        undecodable: bool = False,
        watched: Path | None = None,
        budget: int | None = None,
        url: str | None = None,
        shape: tuple[int, int, int] = (1, 4, 4),
    ) -> WorkerProcess:
        """Start a worker of fake models that take `seconds` for an evaluation.

        url: of the store, if not the one of all workers.
        clock_ahead: seconds by which its clock is wrong.
        more_mib: MiB of address space that it may still allocate (Linux); None = no limit.
        decoded_at_once: images in a batch of that decoder.
        decode_seconds: of the models' decoder; None: they are models of pixels.
        fatal_class: its rows break the device; corrupting_class: they make all results of the device NaN.
        undecodable: whether the decoder has no memory.
        watched: a folder of model folders as `write_model` makes them.
        budget: the weight of models in memory; those of the start have none.
        shape: (C, H, W) of their images.
        digest: of the models, whose weight depends on its length; unknown if empty.
        """
        settings = {"lease": lease, "job_timeout": job_timeout, "max_batch": max_batch}
        options = {"url": url or self._url, "names": models, "settings": settings, "result_ttl": self._result_ttl}
        options |= {"seconds": seconds, "kill_class": kill_class, "kill_below": kill_below}
        options |= {"oom_class": oom_class, "max_rows": max_rows}
        options |= {"min_pipelined_images": min_pipelined_images, "clock_ahead": clock_ahead, "more_mib": more_mib}
        options |= {"digest": digest, "unstartable_class": unstartable_class, "decode_seconds": decode_seconds}
        options["decoded_at_once"] = decoded_at_once
        options["shape"] = shape
        options["results"] = asdict(self._results)
        options |= {"fatal_class": fatal_class, "corrupting_class": corrupting_class, "undecodable": undecodable}
        options["budget"] = budget
        options["watched"] = None if watched is None else str(watched)
        assert self._launcher.stdin is not None
        assert self._launcher.stdout is not None
        self._launcher.stdin.write(json.dumps(options) + "\n")
        self._launcher.stdin.flush()
        worker = WorkerProcess(int(self._launcher.stdout.readline()), self._folder)
        self.workers.append(worker)
        return worker

    def log(self) -> str:
        return Path(self._log.name).read_text()[-3000:]

    def lines(self, job_id: str) -> list[dict[str, Any]]:
        """Of the workers' log, those about a job."""
        lines = [line for line in Path(self._log.name).read_text().splitlines() if line.startswith("{")]
        return [line for line in map(json.loads, lines) if line.get("job") == job_id]

    def submit(self, pictures: Mapping[str, bytes] = NO_PICTURES, **fields: Any) -> str:
        """Enqueue a job as the front end does; returns its id. pictures: PNGs of the model's size by request field."""
        job_id = uuid.uuid4().hex
        digests = {name: f"sha256:{hashlib.sha256(png).hexdigest()}" for name, png in pictures.items()}
        keys = {name: input_picture("", digest.removeprefix("sha256:"), name) for name, digest in digests.items()}
        asked = request(**{**fields, **digests})
        record = JobRecord(job_id, "", asked, time.time(), request_id=f"for {job_id}", inputs=keys)
        self.queue.enqueue(record, QueueEstimate(0, None), {keys[name]: png for name, png in pictures.items()})
        return record.id

    def job(self, job_id: str) -> JobRecord:
        record = self.store.job(job_id)
        assert record is not None
        return record

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, f"waited {TIMEOUT:g} s for {what}\n{self.log()}"
            time.sleep(0.02)

    def running(self, job_id: str) -> bool:
        """Whether it has done a step in its current attempt."""
        record = self.job(job_id)
        return record.status == "running" and record.step > 0

    def finished(self, job_id: str) -> JobRecord:
        """The job when it is over."""
        self.until(lambda: self.job(job_id).terminal, f"the end of {self.job(job_id)}")
        return self.job(job_id)

    def sha256(self, job_id: str) -> list[str]:
        record = self.finished(job_id)
        assert record.status == "succeeded", record.error
        return [image.sha256 for image in record.images]

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """All that is stored."""
        return self.store.events.read(job_id, count=100_000)

    def forgotten(self, job_id: str) -> bool:
        """Whether RQ knows nothing of a job any more, but for what a last heartbeat leaves to expire."""
        return all(self.client.ttl(key) != -1 for key in self.client.scan_iter(f"rq:*{job_id}*"))

    def rq_queue(self, model: str) -> Queue:
        return Queue(model, connection=self.client, serializer=JSONSerializer)

    def close(self) -> None:
        for worker in self.workers:
            if worker.exit_code() is None:
                worker.kill()
        self._launcher.communicate()
        self._launcher.wait()
        self.client.close()
        self._log.close()
