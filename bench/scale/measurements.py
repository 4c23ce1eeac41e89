"""What is measured: the store's work for a job, sockets, the acceptance of requests, and many workers."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles

import httpx
from websockets.asyncio.client import connect as connect_socket

from bench.errors import BenchError
from bench.load.processes import MeasuredProgram, answers, free_port, resident_bytes
from bench.results.samples import SampleRecorder
from bench.scale import scale_names as names
from bench.scale.scale_run import MODEL, ScaleRun, StoreCounters

EVALUATION_SECONDS = 0.02  # so that each step is published by itself
IDLE_SECONDS = 5.0
WARM_UP = 20
FILES = 8192

PROC_STAT_CPU = slice(11, 13)  # user and system time, counted after the parent's number
TICKS_PER_SECOND = 100


def measure_operations(run: ScaleRun, recorder: SampleRecorder) -> None:
    """What a job, a step and a frame cost the store, from jobs of two lengths; the idle worker's own work is left out.

    A client follows the jobs: those that nobody follows are written four times a second, however many steps they take.
    """
    short, long = run.size.steps
    run.empty()
    with run.workers(1, EVALUATION_SECONDS) as program:
        _cost(run, program, short, frames=False)  # warm up
        idle, polled = _idle(run, polls=False), _idle(run, polls=True)
        measured = {
            (steps, frames): _cost(run, program, steps, frames=frames)
            for steps in (short, long)
            for frames in (False, True)
        }
    costs = {key: cost.less(polled, seconds) for key, (cost, seconds) in measured.items()}
    step = costs[long, False].since(costs[short, False], long - short)
    frame = costs[long, True].less(costs[long, False]).since(_nothing(), long)
    rows = {names.IDLE_WORKER: idle, names.STEP: step, names.FRAME: frame}
    rows[names.JOB] = costs[short, False].less(step, short)
    for condition, cost in rows.items():
        for quantity, value in cost.quantities().items():
            recorder.add(condition, names.STORE, quantity, max(0.0, value))
    recorder.add(names.JOB, names.STORE, names.MEMORY, _memory_of_waiting_jobs(run))


def _cost(run: ScaleRun, program: MeasuredProgram, steps: int, *, frames: bool) -> tuple[StoreCounters, float]:
    """What one job costs, and its seconds: the mean of jobs one after another."""
    run.empty()
    before, began = StoreCounters.read(run.client), time.monotonic()
    for done in range(run.size.jobs):
        run.submit(steps, watched=True, frames=frames)
        run.wait_for_ends(done + 1, program)
    seconds = (time.monotonic() - began) / run.size.jobs
    return StoreCounters.read(run.client).since(before, run.size.jobs), seconds


def _idle(run: ScaleRun, *, polls: bool) -> StoreCounters:
    """What a worker without jobs costs in a second. polls: with what these measurements ask while a job runs."""
    before, began = StoreCounters.read(run.client), time.monotonic()
    while time.monotonic() - began < IDLE_SECONDS:
        if polls:
            run.ended()
        time.sleep(run.poll_seconds)
    return StoreCounters.read(run.client).since(before, time.monotonic() - began)


def _nothing() -> StoreCounters:
    return StoreCounters(0, 0, 0, 0, 0)


def _memory_of_waiting_jobs(run: ScaleRun) -> float:
    """Bytes of the store for a job that waits."""
    run.empty()
    before, count = run.memory(), max(1_000, run.size.jobs)
    for _ in range(count):
        run.submit(20)
    return (run.memory() - before) / count


def measure_sockets(run: ScaleRun, recorder: SampleRecorder) -> None:
    """The memory that the front end takes for each WebSocket that listens to a job that waits."""
    run.empty()
    run.serve_nobody()
    job = run.submit(20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with _front_end(run) as (program, url):
        grown = asyncio.run(
            _grow(program.process.pid, f"{url.replace('http', 'ws')}/jobs/{job}/events", run.size.sockets)
        )
    recorder.add(names.listeners(run.size.sockets), names.FRONT_END, names.BYTES_PER_SOCKET, grown / run.size.sockets)


async def _grow(pid: int, url: str, sockets: int) -> float:
    """The bytes by which a process grows while so many sockets listen. Each has received the job's first event."""
    async with AsyncExitStack() as stack:

        async def listen() -> None:
            socket = await stack.enter_async_context(
                connect_socket(url, proxy=None, compression=None, ping_interval=None, open_timeout=60)
            )
            await socket.recv()

        for _ in range(WARM_UP):
            await listen()
        before = resident_bytes(pid)
        for _ in range(sockets):
            await listen()
        return float(resident_bytes(pid) - before)


def measure_acceptance(run: ScaleRun, recorder: SampleRecorder) -> None:
    """The time and the CPU time of `POST /generate` behind queues of several lengths, one request at a time."""
    for waiting in run.size.waiting:
        run.empty()
        run.serve_nobody()
        for _ in range(waiting):
            run.submit(20)
        with _front_end(run) as (program, url), httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client:
            for _ in range(WARM_UP):
                _post(client)
            cpu = _cpu_seconds(program.process.pid)
            times = [_post(client) for _ in range(run.size.posts)]
            cpu = (_cpu_seconds(program.process.pid) - cpu) / run.size.posts
        condition = names.waiting(waiting)
        recorder.add(condition, names.FRONT_END, names.MEDIAN, 1000 * median(times))
        recorder.add(condition, names.FRONT_END, names.P99, 1000 * quantiles(times, n=100, method="inclusive")[98])
        recorder.add(condition, names.FRONT_END, names.FRONT_END_CPU, 1000 * cpu)
        run.log(f"{condition}: median {1000 * median(times):.1f} ms")


def measure_workers(run: ScaleRun, recorder: SampleRecorder) -> None:
    """Jobs per second of several numbers of workers, whose networks take no time, and how busy the store is."""
    for count in run.size.workers:
        run.empty()
        with run.workers(count) as program:
            began, before = time.monotonic(), StoreCounters.read(run.client)
            for _ in range(run.size.worker_jobs):
                run.submit(run.size.steps[0])
            run.wait_for_ends(run.size.worker_jobs, program)
            seconds = time.monotonic() - began
            busy = StoreCounters.read(run.client).since(before, seconds).cpu
        recorder.add(names.workers(count), names.STORE, names.JOBS_PER_SECOND, run.size.worker_jobs / seconds)
        recorder.add(names.workers(count), names.STORE, names.STORE_SHARE, busy)
        run.log(f"{names.workers(count)}: {run.size.worker_jobs / seconds:.0f} jobs/s")


SECTIONS: dict[str, Callable[[ScaleRun, SampleRecorder], None]] = {
    names.OPERATIONS: measure_operations,
    names.SOCKETS: measure_sockets,
    names.ACCEPTANCE: measure_acceptance,
    names.WORKERS: measure_workers,
}


@contextmanager
def _front_end(run: ScaleRun) -> Iterator[tuple[MeasuredProgram, str]]:
    """A `denoised api` on the store, without limits that a measurement would reach, and its URL."""
    port = free_port()
    command: list[str | Path] = [sys.executable, "-m", "denoised", "api", "--port", str(port)]
    command += ["--max-queue", "1000000", "--queue-limit", "1000000000"]
    program = MeasuredProgram.start("api", command, run.folder / "api.log", environment={"REDIS_URL": run.url})
    try:
        url = f"http://127.0.0.1:{port}"
        program.wait_until(lambda: answers(f"{url}/readyz"))
        yield program, url
    finally:
        program.stop()


def _post(client: httpx.Client) -> float:
    """The seconds of one request."""
    began = time.perf_counter()
    answer = client.post("/generate", json={"model": MODEL, "label": "3", "steps": 20})
    seconds = time.perf_counter() - began
    if answer.status_code != 202:
        raise BenchError(f"a request was not accepted: {answer.status_code} {answer.text[:200]}")
    return seconds


def _cpu_seconds(pid: int) -> float:
    """The CPU time of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[PROC_STAT_CPU])) / TICKS_PER_SECOND
