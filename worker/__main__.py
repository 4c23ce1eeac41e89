"""`denoised worker`: load models and serve them from the queue."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from denoised.command_line.console import escape_unencodable, exit_with_error
from denoised.command_line.options import SingleCommand, env
from denoised.command_line.service_options import (
    DEFAULT_REDIS,
    GIB,
    MAX_SECONDS,
    Controlnets,
    Loras,
    MaxBatch,
    MaxFrameBytes,
    MaxPictureBytes,
    MaxResumeBytes,
    Models,
    ModelsFolder,
    ResultsUrl,
    ResultTtl,
)
from denoised.jobs.log import LogFormat, log_to_stderr
from denoised.jobs.results.settings import ResultSettings
from denoised.worker.engine.speed import Speed
from denoised.worker.error_kinds import is_out_of_memory

if TYPE_CHECKING:
    from denoised.model.hub.pull import Puller

log = logging.getLogger("denoised.worker")

RESULT_SECONDS = 5.0  # timeout of a connection to the place for results

MaxImages = Annotated[int, env("MAX_IMAGES", "most images per request", min=1, max=1024)]
Device = Annotated[str, env("DEVICE", "cpu, cuda, cuda:1, mps")]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
PrecisionOption = Annotated[
    Precision,
    env(
        "PRECISION",
        "precision of the networks: float32; on a CUDA device also tf32, bfloat16, float16; on a CPU bfloat16",
    ),
]
Threads = Annotated[int, env("THREADS", "CPU threads of the network; 0 = one per core", min=0, max=1024)]
ModelMemory = Annotated[
    float | None,
    env(
        "MODEL_MEMORY",
        "GiB for the weights of models; those used longest ago leave, until jobs wait for them [default: no limit]",
        min=0.001,
        max=100_000,
    ),
]
Lease = Annotated[
    float,
    env("LEASE", "seconds after which the jobs of a worker that no longer reports go to another", min=1, max=3600),
]
JobTimeout = Annotated[float, env("JOB_TIMEOUT", "longest time that a job may run, in seconds", min=1, max=MAX_SECONDS)]
RedisUrl = Annotated[str, typer.Option(envvar="REDIS_URL", help="URL of the Redis or Valkey server")]
LogFormatOption = Annotated[
    LogFormat, env("LOG_FORMAT", "json or text; auto: text with warnings only on a terminal, json elsewhere")
]


cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=SingleCommand)
def worker(
    model: Models = None,
    models_folder: ModelsFolder = None,
    model_memory: ModelMemory = None,
    loras: Loras = None,
    controlnets: Controlnets = None,
    max_batch: MaxBatch = None,
    max_images: MaxImages = 16,
    device: Device = "cpu",
    precision: PrecisionOption = "float32",
    threads: Threads = 0,
    lease: Lease = 10.0,
    job_timeout: JobTimeout = 600.0,
    result_ttl: ResultTtl = 86_400,
    redis_url: RedisUrl = DEFAULT_REDIS,
    results_url: ResultsUrl = None,
    max_frame_bytes: MaxFrameBytes = 20 * GIB,
    max_picture_bytes: MaxPictureBytes = 100 * GIB,
    max_resume_bytes: MaxResumeBytes = 10 * GIB,
    log_format: LogFormatOption = "auto",
) -> None:
    """Serve models from the queue until SIGTERM; then finish the running jobs or return them to the queue."""
    log_to_stderr(log_format)
    names = model or [item.strip() for item in os.environ.get("DENOISED_MODELS", "").split(",") if item.strip()]
    try:
        folders = _find_folders(names, precision, threads)
        budget = None if model_memory is None else int(model_memory * GIB)
        weights = {"loras": loras, "controls": controlnets}
        loads = {"device": device, "max_images": max_images, "precision": precision, **weights, "budget": budget}
        results = ResultSettings(results_url or None, max_frame_bytes, max_picture_bytes, max_resume_bytes)
        _serve(folders, loads, models_folder, redis_url, max_batch, lease, job_timeout, result_ttl, results)
    except _expected_errors() as error:
        exit_with_error("worker", error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        exit_with_error("worker", "there is not enough memory for this worker: serve fewer models, or raise its limit")


def _find_folders(names: list[str], precision: Precision, threads: int) -> list[Path]:
    """The folders of the models that are named; those on a hub are downloaded."""
    import torch

    from denoised.model.hub.model_sources import resolve_models

    def make_puller() -> Puller:
        from denoised.model.hub.terminal import logging_puller

        return logging_puller(log)

    if threads:
        torch.set_num_threads(threads)
    return resolve_models(names, make_puller, precision)


def _serve(
    folders: list[Path],
    loads: dict[str, Any],
    models_folder: Path | None,
    redis_url: str,
    max_batch: int | None,
    lease: float,
    job_timeout: float,
    result_ttl: int,
    results: ResultSettings,
) -> None:
    from denoised.jobs.redis.connection import connect
    from denoised.jobs.redis.fitness import check_fitness
    from denoised.jobs.results.result_store import ResultStore
    from denoised.jobs.store.store import Store
    from denoised.worker.delivery.rq_worker import BatchingWorker
    from denoised.worker.engine.batch_size import measure_all
    from denoised.worker.engine.canary import Canary
    from denoised.worker.engine.memory_budget import evaluation_budget
    from denoised.worker.model_loading import bundled, load_models, named_folders
    from denoised.worker.models.loading import LoadOptions, loading_of
    from denoised.worker.models.model_folders import ModelFolders
    from denoised.worker.settings import WorkerSettings

    models = load_models(folders, **loads)
    client = connect(redis_url, timeout=5.0)
    check_fitness(client)
    result_store = ResultStore(results.url, RESULT_SECONDS) if results.url is not None else None
    store = Store(client, result_ttl, results, result_store)
    if result_store is not None:
        store.results.join()
    speed, memory_bytes = Speed(), evaluation_budget(loads["device"])
    slots = measure_all(models, speed, memory_bytes) if max_batch is None else dict.fromkeys(models, max_batch)
    settings = WorkerSettings(max(slots.values()), slots, memory_bytes, lease, job_timeout)
    canaries = [canary for canary in map(Canary.record, models.values()) if canary is not None]
    watched = ModelFolders(named_folders([*bundled(), *folders]), models_folder)
    loading = loading_of(watched, LoadOptions(**loads), speed, memory_bytes, max_batch)
    BatchingWorker(models, client, store, settings, speed, canaries, loading).work()


def _expected_errors() -> tuple[type[Exception], ...]:
    from denoised.jobs.errors import StoreError
    from denoised.model.errors import ModelError
    from denoised.worker.errors import WorkerError

    return (ModelError, StoreError, WorkerError)


if __name__ == "__main__":
    escape_unencodable()
    cli(prog_name="denoised worker")
