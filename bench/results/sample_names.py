"""The names of sections, subjects, conditions and quantities, in the CSV files and on the pages."""

from __future__ import annotations

# Sections, in the order in which they run.
KERNELS, SHAPES, LOADS, CLIENTS, LISTENERS = "kernels", "shapes", "loads", "clients", "listeners"
MEMORY, READINESS = "memory", "ready"
TEXT_KERNELS, TEXT_LOADS = "text-kernels", "text-loads"
TURNS = "turns"
ONE_EVALUATION = "evaluations"  # on an accelerator, before LOADS

# Loads.
DENOISED, LOCKED, BATCHING, BARE = "denoised", "(a) FastAPI + lock", "(b) LitServe", "(c) bare U-Net loop"
ENGINE = "denoised's engine alone"
ONE_CLIENT = "one client, 20 steps"
ONE_GUIDED = "one client, 25 guided steps"
PICTURES = "pictures/s"
GUIDED_LOAD = "25 guided steps"
NO_LISTENERS, SIXTEEN_LISTENERS = "no listeners", "16 listeners"
EVALUATIONS = "evaluations/s"
LATENCY, SHORT_LATENCY = "median latency, s", "median latency of 10 steps, s"
MEAN_BATCH, CHOSEN_BATCH = "mean batch", "batch"
WINDOW, ALL_SUBJECTS, SECONDS = "window", "all", "seconds"  # how long each load lasted
FRAMES = "fraction of frames received"

# One evaluation of the network.
CONTIGUOUS, CHANNELS_LAST = "diffusers, contiguous", "diffusers, channels_last"
CONVOLUTIONS, COMPILED = "the convolutions alone", "diffusers, compiled for this batch"
COMPILED_WITH_GRAPHS = "diffusers, compiled with CUDA graphs"
EAGER = (CONTIGUOUS, CHANNELS_LAST)
TABLE_BATCHES = (1, 16)
MILLISECONDS = "ms"

# The engine's work in one turn.
TURN_BATCHES = (1, 16, 64)
TURN, WATCHED_TURN = "ms per turn", "ms per turn, frames watched"
TURN_QUANTITIES = (TURN, WATCHED_TURN)

# Startup and memory.
WORKER_START = "start"
FIRST_START, LATER_START = "first start", "later starts"
AFTER_WARM_UP = "after 500 jobs"
READY, GROWTH, MEGABYTES = "seconds to ready", "growth of memory, %", "memory, MB"


def batch(images: int) -> str:
    """The condition of an evaluation at a batch size."""
    return f"batch {images}"


def pixels(side: int) -> str:
    """The condition of an evaluation of one image of that width and height."""
    return f"{side} pixels"


def in_precision(subject: str, precision: str) -> str:
    """The name of a subject in a precision."""
    return f"{subject}, {precision}"
