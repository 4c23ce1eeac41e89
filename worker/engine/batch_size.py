"""How many images an evaluation may hold: measured with the engine itself, before the worker serves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from denoised.jobs.record import JobRecord
from denoised.jobs.request import SamplingRequest
from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import trajectories

CPU_SIZES = (1, 2, 4, 8, 16, 32)
GPU_SIZES = (16, 64, 128, 256)
USUAL = 16  # the least if the time was too short to see the gain end, or if a turn of so many is short
SHORT_TURN = 0.1  # seconds
TURNS = 3  # of each size; the fastest counts
GAIN = 1.05  # what a larger batch must bring to be worth a longer turn
SECONDS = 1.2


@dataclass(frozen=True)
class Pace:
    """How long a turn of `images` unguided trajectories takes at its fastest, in seconds.

    On a CPU this is the time of the engine's thread, which does its part of everything that the other threads do:
    the time that it waits for them or for another program is not the network's.
    """

    images: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def measure(model: ServedModel, seconds: float = SECONDS) -> list[Pace]:
    """Measure the pace at each of `sizes`, the smallest first, for about `seconds`.

    A size that is too large for the device takes inf, and is the last. The very first turn, in which libraries load
    their kernels, is not counted.
    """
    if math.isinf(_fastest_turn(model, 1, end=0.0)):
        return []
    end = time.monotonic() + seconds
    paces: list[Pace] = []
    for images in sizes(model):
        if time.monotonic() + (2 * paces[-1].seconds if paces else 0.0) > end:
            break
        paces.append(Pace(images, _fastest_turn(model, images, end)))
        if math.isinf(paces[-1].seconds):
            break
    return paces


def sizes(model: ServedModel) -> tuple[int, ...]:
    """The batch sizes to measure."""
    return CPU_SIZES if model.device.type == "cpu" else GPU_SIZES


def choose_max_batch(paces: list[Pace], tried: Sequence[int] = CPU_SIZES) -> int:
    """The smallest batch for which no larger one makes 5 % more images per second; at least USUAL if that is short.

    A turn costs more than what is measured here (Redis, events, pictures), so only networks with long turns get small
    batches. Not every size of `tried` may have been measured. A single larger batch without a gain decides nothing:
    another program may have slowed it down.
    """
    usual = max((pace.images for pace in paces if pace.images <= USUAL and pace.seconds <= SHORT_TURN), default=1)
    for k, pace in enumerate(paces):
        if all(larger.per_second < GAIN * pace.per_second for larger in paces[k + 1 :]):
            saw_gain_end = len(paces) == len(tried) or k + 2 < len(paces) or math.isinf(paces[-1].seconds)
            return max(usual, pace.images) if saw_gain_end else max(pace.images, USUAL)
    return USUAL


def _fastest_turn(model: ServedModel, images: int, end: float) -> float:
    """Seconds of the fastest of TURNS, or of fewer if `end` comes before; inf if the network fails at that size."""
    engine = Engine({model.card.name: model}, images, pipelined=False)
    engine.batch.admit(trajectories(_job(model, images), model))
    clock = time.thread_time if model.device.type == "cpu" else time.perf_counter
    fastest = _turn_seconds(engine, clock)
    for _ in range(TURNS - 1):
        if time.monotonic() + fastest > end:
            break
        fastest = min(fastest, _turn_seconds(engine, clock))
    return fastest


def _turn_seconds(engine: Engine, clock: Callable[[], float]) -> float:
    started = clock()
    turn = engine.step()
    if not turn.advanced or turn.halved:
        return math.inf
    turn.advanced[0].trajectory.registers.sum().item()  # waits for a GPU
    return clock() - started


def _job(model: ServedModel, images: int) -> JobRecord:
    """A job of that many images with the card's defaults, but without guidance."""
    card = model.card
    request = SamplingRequest(
        model=card.name,
        label=0 if card.labels else None,
        label_name=None,
        n=images,
        seed=0,
        sampler=card.default.sampler,
        steps=min(TURNS, card.timesteps),
        eta=0.0,
        guidance_scale=1.0,
        format="png",
    )
    return JobRecord(id="measured", owner="", request=request, created_at=0.0)
