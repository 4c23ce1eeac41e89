"""How many images an evaluation may hold: measured with the engine itself, before it serves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from denoised.jobs.record import JobRecord
from denoised.jobs.request import SamplingRequest
from denoised.model.serving.pixel_model import PixelModel
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import trajectories

SIZES = (1, 2, 4, 8, 16, 32)
GPU_SIZES = (16, 64, 128, 256)
USUAL = 16  # the least where the time was too short to see the rise end, and where a turn of so many is short
SHORT = 0.1  # seconds
TURNS = 3  # of each size; the fastest counts
GAIN = 1.05  # what a larger batch must bring to be worth a longer turn
SECONDS = 1.2


@dataclass(frozen=True)
class Pace:
    """What a turn of `images` trajectories, none of them guided, takes at its fastest.

    On a CPU the time is that of the engine's thread, which has its share in all that the others do: what it
    waits for them or for another program is not the network's.
    """

    images: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.images / self.seconds


def measure(model: PixelModel, seconds: float = SECONDS) -> list[Pace]:
    """The pace at each of `sizes`, the smallest first, as far as `seconds` suffice.

    A size too large for the device takes inf, and is the last. The very first turn, in which libraries load their
    kernels, is not counted.
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


def sizes(model: PixelModel) -> tuple[int, ...]:
    """Batches that are tried."""
    return SIZES if model.device.type == "cpu" else GPU_SIZES


def enough(paces: list[Pace], tried: Sequence[int] = SIZES) -> int:
    """The smallest batch than which no larger one makes 5 % more images a second, and USUAL where that is short.

    A turn costs more than what is measured here (Redis, events, pictures), so few lanes are for networks alone
    whose turns are long. Not every size may have been measured. One larger batch without a gain may be another
    program's doing. tried: what there was to measure.
    """
    usual = max((pace.images for pace in paces if pace.images <= USUAL and pace.seconds <= SHORT), default=1)
    for k, pace in enumerate(paces):
        if all(larger.per_second < GAIN * pace.per_second for larger in paces[k + 1 :]):
            seen = len(paces) == len(tried) or k + 2 < len(paces) or math.isinf(paces[-1].seconds)
            return max(usual, pace.images) if seen else max(pace.images, USUAL)
    return USUAL


def _fastest_turn(model: PixelModel, images: int, end: float) -> float:
    """Seconds of the fastest of TURNS, of fewer when `end` comes before; inf when the network fails at that size."""
    engine = Engine({model.card.name: model}, images, flying=False)
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
    turn.advanced[0].trajectory.registers.sum().item()  # a GPU answers when it is done
    return clock() - started


def _job(model: PixelModel, images: int) -> JobRecord:
    """A job of that many images, as the model's card says but for guidance."""
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
