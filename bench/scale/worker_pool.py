"""`python -m bench.scale.worker_pool URL COUNT SECONDS`: workers whose network does nothing, forked from one process.

Everything else of a worker is as it is served: leases, the job fetcher, the engine, the publisher, encoded pictures.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time

import torch
from torch import Tensor

from bench.sections.turn_cost import IdleBackend
from denoised.jobs.log import log_to_stderr
from denoised.jobs.redis.connection import connect
from denoised.jobs.store.store import Store
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.worker.delivery.rq_worker import BatchingWorker
from denoised.worker.settings import WorkerSettings

MAX_BATCH = 16
NAME = "digits"
LEASE = 10.0  # seconds, the default
LONG_LEASE = 60.0  # of one worker among many, so that it is not taken for lost while it waits for a core


class TimedBackend(IdleBackend):
    """The network that does nothing, and takes its time. seconds: of an evaluation."""

    def __init__(self, model: PixelModel, rows: int, seconds: float) -> None:
        super().__init__(model, rows)
        self._seconds = seconds

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        time.sleep(self._seconds)
        return super().__call__(x, t, label)


def main() -> None:
    """Fork the workers, and end them on SIGTERM."""
    url, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    log_to_stderr()
    torch.set_num_threads(1)
    model = load_model(ZOO / NAME)
    model.backend = TimedBackend(model, 2 * MAX_BATCH, seconds)
    gc.freeze()  # the pages of what is loaded stay shared
    lease = LEASE if count == 1 else LONG_LEASE
    children = [child for _ in range(count) if (child := _fork(url, model, lease))]

    def end(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    for child in children:
        os.waitpid(child, 0)


def _fork(url: str, model: PixelModel, lease: float) -> int:
    """The number of a new worker's process."""
    if child := os.fork():
        return child
    client = connect(url, timeout=60.0)
    BatchingWorker({NAME: model}, client, Store(client), WorkerSettings(max_batch=MAX_BATCH, lease=lease)).work()
    os._exit(0)


if __name__ == "__main__":
    main()
