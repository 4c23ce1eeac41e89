"""The sections that load the servers: compared, over the number of clients, and with listeners."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.benchmark_run import BenchmarkRun
from bench.errors import BenchError
from bench.load.closed_loop import Round, check_png, closed_loop, mean_batch
from bench.load.event_listeners import listening_loop
from bench.load.servers import FOLDER, Server
from bench.load.workloads import IMAGE_SIZE, REAL_TRAFFIC, THREE_STEP_COUNTS, TWENTY_STEPS, ImageRequest, Workload
from bench.results.sample_names import (
    BARE,
    CHOSEN_BATCH,
    DENOISED,
    ENGINE,
    EVALUATIONS,
    FRAMES,
    LATENCY,
    MEAN_BATCH,
    NO_LISTENERS,
    ONE_CLIENT,
    SHORT_LATENCY,
    SIXTEEN_LISTENERS,
)
from bench.results.samples import SampleRecorder
from bench.run_length import RunLength
from bench.sections import engine_loop
from denoised.model.serving.protocol import ServedModel
from denoised.worker.model_loading import load_models

CLIENTS = 16
PROBE = ImageRequest(steps=10, guided=False, label=7, seed=7)  # all servers must answer it alike
TOLERANCE = 2  # gray levels by which two servers' images may differ, from rounding


def measure_loads(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Measure all servers under both workloads with 16 clients, denoised's engine alone, and two with one client."""
    servers, length = run.servers, run.length
    check_same_images([servers.locked, servers.batching, servers.denoised])
    model = load_models([], device="cpu", max_images=1)[FOLDER.name]
    for server in (servers.locked, servers.batching, servers.denoised):
        run.log(f"{server.name}: {server.url}")
    run.log(f"{BARE}: {servers.bare.images} images, {servers.bare.layout}")
    for number in range(length.rounds):
        for workload in (THREE_STEP_COUNTS, REAL_TRAFFIC):
            _measure_workload(run, recorder, workload, number, model)
        for server in (servers.batching, servers.denoised):
            result = load_server(run, server, TWENTY_STEPS, 1, number, length.sweep_seconds)
            recorder.add(ONE_CLIENT, server.name, LATENCY, result.latency())


def _measure_workload(
    run: BenchmarkRun, recorder: SampleRecorder, workload: Workload, number: int, model: ServedModel
) -> None:
    """One round of one workload."""
    servers, length = run.servers, run.length
    for server in (servers.locked, servers.batching):
        result = load_server(run, server, workload, CLIENTS, number, length.seconds)
        record_load(recorder, workload.name, server.name, result)
    rows = load_denoised(run, servers.denoised, recorder, workload, number)
    recorder.add(workload.name, BARE, EVALUATIONS, servers.bare.evaluations_per_second(length.seconds / 2))
    recorder.add(workload.name, BARE, CHOSEN_BATCH, servers.bare.images)
    recorder.add(workload.name, ENGINE, EVALUATIONS, engine_rate(model, workload, number, rows, length))
    run.log(f"round {number + 1}, {workload.name}: {_summary(recorder, workload.name)}")


def measure_clients(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Measure (b) and denoised under the first workload with a growing number of clients."""
    length = run.length
    for number in range(length.rounds):
        for server in (run.servers.batching, run.servers.denoised):
            with server.resumed():
                for clients in length.clients:
                    requests = THREE_STEP_COUNTS.requests(number)
                    result = _run_clients(run, server, requests, clients, length.sweep_seconds)
                    recorder.add(clients, server.name, EVALUATIONS, result.evaluations_per_second)
                    recorder.add(clients, server.name, LATENCY, result.latency())
        run.log(f"round {number + 1} of 1 … {max(length.clients)} clients")


def measure_listeners(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Measure denoised under the first workload with a listener and a frame every step for each job, and without."""
    length, denoised = run.length, run.servers.denoised
    for number in range(length.rounds):
        with denoised.resumed():
            without = _run_clients(run, denoised, THREE_STEP_COUNTS.requests(number), CLIENTS, length.seconds)
            with_listeners, frames = asyncio.run(
                listening_loop(
                    denoised.url,
                    CLIENTS,
                    THREE_STEP_COUNTS.requests(number),
                    warm_up=length.warm_up,
                    seconds=length.seconds,
                )
            )
        recorder.add(NO_LISTENERS, DENOISED, EVALUATIONS, without.evaluations_per_second)
        recorder.add(SIXTEEN_LISTENERS, DENOISED, EVALUATIONS, with_listeners.evaluations_per_second)
        recorder.add(SIXTEEN_LISTENERS, DENOISED, FRAMES, frames)
        run.log(
            f"round {number + 1}: {without.evaluations_per_second:.0f} evaluations/s without listeners, "
            f"{with_listeners.evaluations_per_second:.0f} with; {frames:.0%} of the frames were received"
        )


def check_same_images(servers: list[Server], probe: ImageRequest = PROBE, size: tuple[int, int] = IMAGE_SIZE) -> None:
    """Raise a BenchError unless all servers make the same image for one request, and so do the same work."""
    images = {server.name: probe_image(server, probe, size) for server in servers}
    first, *others = images
    for name in others:
        difference = int(np.abs(images[name] - images[first]).max())
        if difference > TOLERANCE:
            raise BenchError(f"{name} and {first} make different images of {probe}: they differ by {difference} levels")


def probe_image(server: Server, probe: ImageRequest = PROBE, size: tuple[int, int] = IMAGE_SIZE) -> NDArray[np.int64]:
    """The server's image for a request: gray levels (H, W).

    Raises:
        BenchError: if the response is not an image.
    """
    with server.resumed():
        response = httpx.post(
            f"{server.url}/generate", json=probe.body(), headers={"Accept": "image/png"}, timeout=60, trust_env=False
        )
    if response.status_code != 200:
        raise BenchError(f"{server.name} answered {response.status_code}: {response.text[:300]}")
    check_png(response.content, size)
    with Image.open(io.BytesIO(response.content)) as image:
        return np.asarray(image.convert("L"), dtype=np.int64)


def engine_rate(model: ServedModel, workload: Workload, number: int, rows: float, length: RunLength) -> float:
    """Evaluations per second of denoised's engine alone, with the trajectories that occupy so many batch rows."""
    return engine_loop.evaluations_per_second(
        model,
        workload.requests(number),
        max(1, round(rows / workload.rows_per_turn)),
        warm_up=length.warm_up / 2,
        seconds=length.seconds / 2,
    )


def load_denoised(
    run: BenchmarkRun, denoised: Server, recorder: SampleRecorder, workload: Workload, number: int
) -> float:
    """Measure denoised under a workload; returns its mean batch, in rows."""
    with denoised.resumed():
        result = _run_clients(run, denoised, workload.requests(number), CLIENTS, run.length.seconds)
        rows = asyncio.run(mean_batch(denoised.url, result.counted))
    record_load(recorder, workload.name, denoised.name, result)
    recorder.add(workload.name, denoised.name, MEAN_BATCH, rows)
    return rows


def load_server(
    run: BenchmarkRun, server: Server, workload: Workload, clients: int, number: int, seconds: float
) -> Round:
    """Measure a server under a workload."""
    with server.resumed():
        return _run_clients(run, server, workload.requests(number), clients, seconds)


def _run_clients(
    run: BenchmarkRun, server: Server, requests: Iterator[ImageRequest], clients: int, seconds: float
) -> Round:
    length = run.length
    return asyncio.run(
        closed_loop(server.url, clients, requests, warm_up=length.warm_up, seconds=seconds, timeout=length.timeout)
    )


def record_load(recorder: SampleRecorder, condition: str, name: str, result: Round) -> None:
    """Record the throughput and latencies of a load."""
    recorder.add(condition, name, EVALUATIONS, result.evaluations_per_second)
    recorder.add(condition, name, LATENCY, result.latency())
    if condition == THREE_STEP_COUNTS.name:
        recorder.add(condition, name, SHORT_LATENCY, result.latency(10))


def _summary(recorder: SampleRecorder, condition: str) -> str:
    return ", ".join(
        f"{subject} {samples[-1]:.0f}"
        for (where, subject, quantity), samples in recorder.values.items()
        if (where, quantity) == (condition, EVALUATIONS)
    )
