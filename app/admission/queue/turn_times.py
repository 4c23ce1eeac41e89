"""How long turns take: the workers of one model, as they have measured themselves. Needs neither Redis nor a clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from denoised.jobs.worker_report import WorkerReport

TurnTimes = Sequence[tuple[float, float]]  # (rows, seconds) of measured turns, by rows


@dataclass(frozen=True)
class WorkerPool:
    """The workers of one model, as if they were one.

    Attributes:
        slots: images per turn.
        reserved: slots that are shared by the jobs far from their end.
        places: images of one caller that can be admitted; twice as many of all callers together.
        turn_times: of each worker.
        other_models_seconds: between two turns, spent on turns of other models, if these take turns with it.
        others_share: the most seconds that other models get for each second of this one: those of other callers.
        decode_seconds: for one finished image, with all decoders at work; 0 without a decoder.
    """

    slots: int
    reserved: int
    places: int
    turn_times: tuple[TurnTimes, ...]
    other_models_seconds: float = 0.0
    others_share: float = math.inf
    decode_seconds: float = 0.0

    @classmethod
    def of_model(
        cls, model: str, workers: Iterable[WorkerReport], busy: Iterable[str] = (), others_share: float = math.inf
    ) -> WorkerPool | None:
        """The workers that serve a model; None before any has measured its speed. busy: models that have work."""
        serving = [worker for worker in workers if any(card["name"] == model for card in worker.models)]
        measured = [(worker, times) for worker in serving if (times := turn_times(worker, model))]
        if not measured:
            return None
        others = [
            turn_seconds(worker.paces[name], worker.batch_of(name)[0])
            for worker, _ in measured
            for name in set(busy) - {model}
            if worker.paces.get(name)
        ]
        slots, reserved, places = map(sum, zip(*(worker.batch_of(model) for worker, _ in measured), strict=True))
        decoding = [seconds for worker, _ in measured if (seconds := worker.decode_seconds.get(model))]
        return cls(
            slots,
            reserved,
            places,
            turn_times=tuple(times for _, times in measured),
            other_models_seconds=sum(others) / len(measured),
            others_share=others_share,
            decode_seconds=sum(decoding) / len(decoding) ** 2 if decoding else 0.0,
        )

    @property
    def seconds_per_evaluation(self) -> float:
        """Of one row in full turns."""
        return self.turn_seconds(self.slots) / self.slots

    def turn_seconds(self, rows: float) -> float:
        """The time of a turn of so many rows, spread over all workers."""
        share = rows / len(self.turn_times)
        mean = sum(turn_seconds(times, share) for times in self.turn_times) / len(self.turn_times)
        return min(self.other_models_seconds, self.others_share * mean) + mean


def turn_times(worker: WorkerReport, model: str) -> TurnTimes:
    """A worker's measured turns of a model; derived from its overall speed when the model had none yet."""
    if times := worker.paces.get(model):
        return times
    speed = worker.evaluations_per_second
    return [(1.0, 1 / speed), (1024.0, 1024 / speed)] if speed else []


def turn_seconds(times: TurnTimes, rows: float) -> float:
    """The time of one turn: interpolated between measured sizes; beyond them, half of it grows with the rows."""
    for (fewer, before), (more, after) in pairwise(times):
        if fewer <= rows <= more:
            return before + (after - before) * (rows - fewer) / (more - fewer)
    nearest, seconds = times[0] if rows < times[0][0] else times[-1]
    return seconds * (1 + rows / nearest) / 2
