"""What a turn costs the engine's thread besides the network: CPU time of a turn with a network that does nothing.

Waiting for the processor does not count, so that other programs disturb the measurement little. The publisher runs in
its thread; its own CPU time does not count, but what it costs the engine to hand over a turn does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import cast

import torch
from torch import Tensor

from bench.benchmark_run import BenchmarkRun
from bench.load.servers import FOLDER
from bench.results import sample_names as names
from bench.results.samples import SampleRecorder
from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.store.started_attempt import StartedAttempt
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate, UpdateResult
from denoised.model.backends.backend import EagerBackend
from denoised.model.serving.loading import load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.worker.delivery.attempt import AttemptState
from denoised.worker.delivery.publisher import Publisher
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import trajectories

STEPS = 100
WARM_UP_TURNS, TURNS = 6, 30
CLOSE_SECONDS = 60.0


class IdleBackend(EagerBackend):
    """A network that does nothing: its output is zero, and made beforehand."""

    def __init__(self, model: PixelModel, rows: int) -> None:
        super().__init__(model.unet)
        self._output = torch.zeros(rows, model.unet.config.out_channels, *model.shape[1:])

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self._output[: len(x)]


class DiscardingStore:
    """A store that applies every update and keeps none."""

    def write_all(self, updates: Sequence[JobUpdate]) -> list[UpdateResult]:
        """As `Store.write_all`."""
        return [UpdateResult.APPLIED for _ in updates]


def measure_turns(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Measure every sampler of the bundled model at each batch size, alone and with a frame of every image watched."""
    model = load_model(FOLDER)
    model.backend = IdleBackend(model, max(names.TURN_BATCHES))
    with _one_thread():
        for _ in range(run.length.rounds):
            for images in names.TURN_BATCHES:
                for sampler in model.card.samplers:
                    for quantity, watched in ((names.TURN, False), (names.WATCHED_TURN, True)):
                        seconds = turn_seconds(model, sampler, images, watched=watched)
                        recorder.add(names.batch(images), sampler, quantity, 1000 * seconds)
    for key, samples in recorder.values.items():
        run.log(f"{', '.join(key)}: {median(samples):.3f}")


def turn_seconds(model: PixelModel, sampler: str, images: int, *, watched: bool) -> float:
    """The median CPU time of a turn in this thread: one image of each of `images` jobs takes a step.

    watched: a client gets a frame of every image in every turn.
    """
    engine = Engine({model.card.name: model}, images)
    attempts = []
    for seed in range(images):
        record = JobRecord(f"bench-{seed}", "", _request(model, sampler, seed, watched), created_at=0.0)
        attempts.append(AttemptState.begin(StartedAttempt(record, None), model, model.card.numerics))
        engine.admit(trajectories(record, model))
    with _publisher() as publisher:

        def turn() -> None:
            publisher.publish(engine.step(), attempts)

        for _ in range(WARM_UP_TURNS):
            turn()
        return median(_cpu_seconds(turn) for _ in range(TURNS))


def _request(model: PixelModel, sampler: str, seed: int, watched: bool) -> SamplingRequest:
    return SamplingRequest(
        model=model.card.name,
        label=0,
        label_name=None,
        n=1,
        seed=seed,
        sampler=sampler,
        steps=STEPS,
        eta=0.0,
        guidance_scale=1.0,
        format="png",
        preview_every=int(watched),
    )


def _cpu_seconds(action: Callable[[], None]) -> float:
    began = time.thread_time()
    action()
    return time.thread_time() - began


@contextmanager
def _publisher() -> Iterator[Publisher]:
    """A running publisher, with room for all turns."""
    publisher = Publisher(cast(Store, DiscardingStore()), lambda attempt, last: None, depth=WARM_UP_TURNS + TURNS)
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.close(CLOSE_SECONDS)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have PyTorch calculate in the calling thread alone, whose CPU time is measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
