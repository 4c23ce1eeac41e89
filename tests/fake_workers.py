"""`python -m tests.fake_workers FOLDER`: the launcher of `tests.harness`. It forks a worker for each line on its stdin.

{pid}.exit holds the exit code of a worker that has ended. {pid}.rows has one line per evaluation: its time, and the sum
of x for each row, as the row's fingerprint.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import rq.utils
import torch
from torch import Tensor

from denoised.jobs.log import log_to_stderr
from denoised.jobs.numerics import with_format
from denoised.jobs.redis.connection import connect
from denoised.jobs.results.result_store import ResultStore
from denoised.jobs.results.settings import ResultSettings
from denoised.jobs.store.store import Store
from denoised.model.diffusion.predictions import Estimate
from denoised.model.errors import CheckpointError
from denoised.model.serving.card import CardLatent
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.protocol import Pictures
from denoised.worker.delivery.rq_worker import BatchingWorker
from denoised.worker.engine.canary import Canary
from denoised.worker.models.model_folders import ModelFolders
from denoised.worker.models.model_loader import Loading
from denoised.worker.models.ready_model import ReadyModel
from denoised.worker.settings import WorkerSettings
from tests.fake_model import FakeModel


class FaultyModel(FakeModel):
    """A row of class `kill_class` at a timestep below `kill_below` kills its worker, like a fault in a kernel; a row of
    class `oom_class`, or more than `max_rows` rows at once, allocate 64 MiB and run out of memory. A job of class
    `unstartable_class` finds no memory to start. A row of `fatal_class` breaks the device: from then on, everything
    on it fails; one of `corrupting_class` makes all its results NaN. An `undecodable` model has no memory to decode.
    With `decode_seconds` it has latents, which take so long to decode."""

    def __init__(
        self,
        name: str,
        folder: Path,
        seconds: float,
        kill_class: int | None,
        kill_below: float,
        oom_class: int,
        unstartable_class: int,
        max_rows: int,
        min_pipelined_images: int | None,
        digest: str,
        decode_seconds: float | None,
        decoded_at_once: int,
        fatal_class: int,
        corrupting_class: int,
        undecodable: bool,
        shape: Sequence[int],
    ) -> None:
        channels, height, width = shape
        super().__init__(name, nan_class=3, shape=(channels, height, width))
        self._seconds_served = seconds
        self._unstartable_class = unstartable_class
        self._weight = 1 + len(digest) / 8
        if digest:
            numerics = with_format("fake", digest)
            self.card = self.card.model_copy(update={"digest": digest, "numerics": numerics})
        self.min_pipelined_images = min_pipelined_images
        self._kill_class, self._below = kill_class, kill_below
        self._oom_class, self._max_rows = oom_class, max_rows
        self._fatal_class, self._corrupting_class = fatal_class, corrupting_class
        self._is_dead = self._is_corrupt = False
        self._undecodable = undecodable
        self._rows: IO[str] = io.StringIO()  # of the canary
        self._decode_seconds = decode_seconds or 0.0
        self._decoded_at_once = decoded_at_once
        if decode_seconds is not None:
            self.card = self.card.model_copy(update={"latent": CardLatent(channels=1, downscale=1)})

    def begin_serving(self, folder: Path) -> None:
        """From now on evaluations take their time and are logged."""
        self._seconds = self._seconds_served
        self._rows = (folder / f"{os.getpid()}.rows").open("a", buffering=1)

    def preview(self, x0: Tensor) -> Pictures:
        self._raise_if_dead()
        return super().preview(x0)

    def _raise_if_dead(self) -> None:
        if self._is_dead:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nFor debugging, …")

    def decode(self, x0: Tensor) -> Pictures:
        time.sleep(self._decode_seconds)
        self._raise_if_dead()
        if self._undecodable:
            raise MemoryError
        return super().decode(x0)

    def decode_limit(self, shape: tuple[int, int, int]) -> int:
        return self._decoded_at_once

    def encode(self, requests: Sequence[ConditioningRequest]) -> Conditioning:
        if any(request.label == self._unstartable_class for request in requests):
            raise MemoryError
        return super().encode(requests)

    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
        labels = conditioning["label"].tolist()
        levels = zip(t.tolist(), labels, strict=True)
        if any(label == self._kill_class and level < self._below for level, label in levels):
            os.kill(os.getpid(), signal.SIGKILL)
        self._is_dead = self._is_dead or self._fatal_class in labels
        self._is_corrupt = self._is_corrupt or self._corrupting_class in labels
        self._raise_if_dead()
        if self._oom_class in labels or len(x) > self._max_rows:
            taken = torch.ones(16, 1 << 20)
            raise torch.OutOfMemoryError(f"out of memory after {taken.nbytes} bytes")
        estimate = super().denoise(x * self._weight, t, alpha, sigma, conditioning)
        if self._is_corrupt:
            estimate = Estimate(estimate.x0 * float("nan"), estimate.epsilon)
        self.calls.clear()
        self._rows.write(json.dumps([time.time(), x.double().flatten(1).sum(1).tolist()]) + "\n")
        return estimate


def shift_clock(seconds: float) -> None:
    """Make this process's clock wrong: ours, and RQ's, whose modules import its functions by name."""
    real = time.time
    time.time = lambda: real() + seconds
    shifted = {
        "now": lambda: datetime.datetime.fromtimestamp(time.time(), datetime.UTC),
        "current_timestamp": lambda: int(time.time()),
    }
    assert shifted.keys() <= vars(rq.utils).keys()
    for module in [module for name, module in sys.modules.items() if name.startswith("rq.")]:
        for name in shifted.keys() & vars(module).keys():
            setattr(module, name, shifted[name])


def limit_memory(mib: int) -> None:
    """Let this process allocate so much address space and no more (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmSize"))
    most = int(line.split()[1]) * 1024 + mib * (1 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def work(
    folder: Path,
    url: str,
    names: Sequence[str],
    settings: dict[str, Any],
    result_ttl: int,
    clock_ahead: float,
    more_mib: int | None,
    watched: str | None,
    budget: int | None,
    results: dict[str, Any],
    **traits: Any,
) -> None:
    log_to_stderr()
    torch.set_num_threads(1)
    if clock_ahead:
        shift_clock(clock_ahead)
    if more_mib is not None:
        limit_memory(more_mib)
    models = {name: FaultyModel(name, folder, **traits) for name in names}
    canaries = [canary for canary in map(Canary.record, models.values()) if canary is not None]
    for model in models.values():
        model.begin_serving(folder)
    client = connect(url, timeout=5.0)
    places = ResultSettings(**results)
    result_store = ResultStore(places.url, 1.0) if places.url is not None else None
    store, loading = Store(client, result_ttl, places, result_store), None
    if watched is not None:
        load = partial(load_model, served_from=folder, slots=settings["max_batch"], traits=traits)
        loading = Loading(ModelFolders(dict.fromkeys(names, folder), Path(watched)), load, weigh, budget)
    worker = BatchingWorker(models, client, store, WorkerSettings(**settings), canaries=canaries, loading=loading)
    worker.work()


def weigh(folder: Path) -> int:
    settings = folder / "model.json"
    return int(json.loads(settings.read_text())["weight"]) if settings.exists() else 0


def load_model(name: str, folder: Path, served_from: Path, slots: int, traits: dict[str, Any]) -> ReadyModel:
    """A model of a folder that `tests.harness.write_model` has made; those of the start are as they were."""
    if not (folder / "model.json").exists():
        return ReadyModel(FaultyModel(name, served_from, **traits), slots)
    settings = json.loads((folder / "model.json").read_text())
    time.sleep(settings["seconds"])
    if settings["refused"]:
        raise CheckpointError(f"{folder}: {settings['refused']}")
    model = FaultyModel(name, served_from, **{**traits, "digest": settings["digest"]})
    canary = Canary.record(model)
    model.begin_serving(served_from)
    return ReadyModel(model, slots, canary)


def reap(folder: Path) -> None:
    """Write the exit codes of workers that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        part = folder / f"{pid}.part"
        part.write_text(str(os.waitstatus_to_exitcode(status)))
        part.rename(folder / f"{pid}.exit")


def main(folder: Path) -> None:
    signal.signal(signal.SIGCHLD, lambda *_: reap(folder))
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            try:
                work(folder, **json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)  # noqa: T201
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
