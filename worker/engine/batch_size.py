"""How many images an evaluation of each model may hold: measured with the engine itself, before the worker serves."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from denoised.jobs.record import JobRecord
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.speed import Speed
from denoised.worker.engine.trajectory import trajectories

log = logging.getLogger("denoised.worker")

CPU_SIZES = (1, 2, 4, 8, 16, 32)
GPU_SIZES = (16, 64, 128, 256)
USUAL = 16  # the least if the time was too short to see the gain end, or if a turn of so many is short
SHORT_TURN = 0.1  # seconds
TURNS = 3  # of each size; the fastest counts
GAIN = 1.05  # what a larger batch must bring to be worth a longer turn
SECONDS = 1.2  # of the first model
SECONDS_IN_ALL = 2.4
DECODED_SECONDS = 0.5  # a turn of one image may take, so that its decoder is measured, too


@dataclass(frozen=True)
class Pace:
    """How long a turn of `images` trajectories takes at its fastest, in seconds.

    rows: of the turn; a guided image has two.

    On a CPU this is the time of the engine's thread, which does its part of everything that the other threads do:
    the time that it waits for them or for another program is not the network's.
    """

    images: int
    seconds: float
    rows: int = 0

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def measure_all(models: Mapping[str, ServedModel], speed: Speed, memory_bytes: int | None) -> dict[str, int]:
    """The images that an evaluation of each model may hold; what is measured is passed to `speed`.

    memory_bytes: that one evaluation may take; None is no limit.
    """
    seconds = min(SECONDS, SECONDS_IN_ALL / len(models))
    found = {}
    for name, model in models.items():
        paces = measure(model, seconds)
        shown = ", ".join(f"{pace.images}: {pace.per_second:.3g}" for pace in paces)
        found[name] = _within_memory(model, choose_max_batch(paces, sizes(model)), memory_bytes)
        log.info("%s: %d images in a turn; images/s by batch: %s", name, found[name], shown or "not measured")
        finite = [(pace.rows, pace.seconds) for pace in paces if math.isfinite(pace.seconds)]
        if finite:
            speed.expect(name, finite)
        if finite and finite[0][1] < DECODED_SECONDS and model.card.latent is not None:
            speed.add_decoding(name, 1, _decoding_seconds(model))
    return found


def _within_memory(model: ServedModel, images: int, memory_bytes: int | None) -> int:
    row = model.evaluation_bytes(*model.shape[1:])
    if memory_bytes is None or not row:
        return images
    rows = job_of_defaults(model, 1).request.rows_per_evaluation
    return max(1, min(images, memory_bytes // (row * rows)))


def _decoding_seconds(model: ServedModel) -> float:
    """Seconds for decoding one image, after one in which libraries load their kernels."""
    latents = torch.zeros(1, *model.shape, device=model.device)
    model.decode(latents)
    started = time.perf_counter()
    model.decode(latents)
    return time.perf_counter() - started


def measure(model: ServedModel, seconds: float = SECONDS) -> list[Pace]:
    """Measure the pace at each of `sizes`, the smallest first, for about `seconds`.

    A size that is too large for the device takes inf, and is the last. The very first turn, in which libraries load
    their kernels, counts only if it takes all of the time.
    """
    started = time.monotonic()
    first = _fastest_turn(model, 1, end=0.0)
    if math.isinf(first.seconds):
        return []
    if time.monotonic() - started > seconds:
        return [first]
    end = time.monotonic() + seconds
    paces: list[Pace] = []
    for images in sizes(model):
        if time.monotonic() + (2 * paces[-1].seconds if paces else 0.0) > end:
            break
        paces.append(_fastest_turn(model, images, end))
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


def _fastest_turn(model: ServedModel, images: int, end: float) -> Pace:
    """The fastest of TURNS, or of fewer if `end` comes before; inf seconds if the network fails at that size."""
    engine, job = Engine({model.card.name: model}, images, pipelined=False), job_of_defaults(model, images)
    engine.batch.admit(trajectories(job, model))
    clock = time.thread_time if model.device.type == "cpu" else time.perf_counter
    fastest = _turn_seconds(engine, clock)
    for _ in range(job.request.steps - 1):
        if time.monotonic() + fastest > end:
            break
        fastest = min(fastest, _turn_seconds(engine, clock))
    return Pace(images, fastest, images * job.request.rows_per_evaluation)


def _turn_seconds(engine: Engine, clock: Callable[[], float]) -> float:
    started = clock()
    turn = engine.step()
    if not turn.advanced or turn.halved:
        return math.inf
    turn.advanced[0].trajectory.registers.sum().item()  # waits for a GPU
    return clock() - started


def job_of_defaults(model: ServedModel, images: int) -> JobRecord:
    """A job of that many images with the card's defaults, so that guidance counts as it does in most requests."""
    card = model.card
    guided = card.unconditional or card.prompts
    request = SamplingRequest(
        model=card.name,
        label=0 if card.labels else None,
        label_name=None,
        prompt="a picture" if card.prompts else None,
        n=images,
        seed=0,
        sampler=card.default.sampler,
        steps=min(TURNS, len(card.grid.consistency) or card.timesteps),
        eta=0.0,
        guidance_scale=card.default.guidance_scale if guided else 1.0,
        guidance_embedded=card.guidance_embedded,
        format="png",
    )
    return JobRecord(id="measured", owner="", request=request, created_at=0.0)
