"""The learning rate over a run, as a fraction of its peak."""

from __future__ import annotations

import math

LR_SCHEDULES = ("cosine", "constant", "trapezoid")
COOLDOWN = 0.2  # the last part of a trapezoid, during which the rate falls


def rate_factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """The factor on the peak rate at step 0, 1, …: linear warm-up, then the schedule.

    schedule: "cosine", half a cosine down to zero; "constant"; or "trapezoid", constant and then linear to zero over
        the last fifth (Hägele et al. 2024, arXiv:2405.18392), which lets a run be prolonged until that begins.
    """
    warm = min(1.0, (step + 1) / max(warmup, 1))
    progress = min(1.0, step / max(steps, 1))
    if schedule == "cosine":
        return warm * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "trapezoid":
        return warm * min(1.0, (1 - progress) / COOLDOWN)
    return warm
