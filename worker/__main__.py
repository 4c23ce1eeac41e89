"""`denoised worker`: load models and serve them from the queue."""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from denoised.jobs.log import log_to_stderr
from denoised.model.options import SingleCommand, escape_unencodable
from denoised.worker.engine.speed import Speed

if TYPE_CHECKING:
    from denoised.model.serving.protocol import ServedModel

log = logging.getLogger("denoised.worker")

DEFAULT_REDIS = "redis://127.0.0.1:6379/0"

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@cli.command(cls=SingleCommand)
def worker(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="a diffusers folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub, served in addition to the "
            "bundled models; repeatable [env var: DENOISED_MODELS]",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            envvar="DENOISED_MAX_BATCH",
            help="largest batch, in images; measured at startup if not set",
        ),
    ] = None,
    max_images: Annotated[
        int, typer.Option(min=1, max=1024, envvar="DENOISED_MAX_IMAGES", help="most images per request")
    ] = 16,
    device: Annotated[str, typer.Option(envvar="DENOISED_DEVICE", help="cpu, cuda, cuda:1, mps")] = "cpu",
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"],
        typer.Option(envvar="DENOISED_PRECISION", help="precision on a CUDA device: float32, tf32 or bfloat16"),
    ] = "float32",
    threads: Annotated[
        int, typer.Option(min=0, envvar="DENOISED_THREADS", help="CPU threads of the network; 0 = one per core")
    ] = 0,
    lease: Annotated[
        float,
        typer.Option(
            min=1,
            envvar="DENOISED_LEASE",
            help="seconds after which the jobs of a worker that no longer reports go to another",
        ),
    ] = 10.0,
    job_timeout: Annotated[
        float,
        typer.Option(min=1, envvar="DENOISED_JOB_TIMEOUT", help="longest time that a job may run, in seconds"),
    ] = 600.0,
    result_ttl: Annotated[
        int, typer.Option(min=1, envvar="DENOISED_RESULT_TTL", help="how long results are kept, in seconds")
    ] = 86_400,
    redis_url: Annotated[
        str, typer.Option(envvar="REDIS_URL", help="URL of the Redis or Valkey server")
    ] = DEFAULT_REDIS,
) -> None:
    """Serve models from the queue until SIGTERM; then finish the running jobs or return them to the queue."""
    log_to_stderr()
    names = model or [item.strip() for item in os.environ.get("DENOISED_MODELS", "").split(",") if item.strip()]
    try:
        _serve(names, max_batch, max_images, device, precision, threads, lease, job_timeout, result_ttl, redis_url)
    except _expected_errors() as error:
        typer.echo(f"denoised worker: {error}", err=True)
        raise typer.Exit(1) from error


def _serve(
    names: list[str],
    max_batch: int | None,
    max_images: int,
    device: str,
    precision: Literal["float32", "tf32", "bfloat16"],
    threads: int,
    lease: float,
    job_timeout: float,
    result_ttl: int,
    redis_url: str,
) -> None:
    import torch

    from denoised.jobs.redis.connection import connect
    from denoised.jobs.redis.fitness import check_fitness
    from denoised.jobs.store.store import Store
    from denoised.model.hub.model_sources import resolve_models
    from denoised.model.hub.terminal import logging_puller
    from denoised.worker.delivery.rq_worker import BatchingWorker
    from denoised.worker.model_loading import load_models
    from denoised.worker.settings import WorkerSettings

    if threads:
        torch.set_num_threads(threads)
    folders = resolve_models(names, logging_puller(log), precision)
    models = load_models(folders, device=device, max_images=max_images, precision=precision)
    client = connect(redis_url, timeout=5.0)
    check_fitness(client)
    store = Store(client, result_ttl)
    speed = Speed()
    if max_batch is None:
        max_batch = _measure_max_batch(next(iter(models.values())), speed)
    settings = WorkerSettings(max_batch=max_batch, lease=lease, job_timeout=job_timeout)
    BatchingWorker(models, client, store, settings, speed).work()


def _measure_max_batch(model: ServedModel, speed: Speed) -> int:
    """Choose how many images an evaluation may hold, and tell `speed` what was measured."""
    from denoised.worker.engine.batch_size import choose_max_batch, measure, sizes

    paces = measure(model)
    log.info("images/s by batch: %s", ", ".join(f"{pace.images}: {pace.per_second:.0f}" for pace in paces))
    if paces:
        finite = [(pace.images, pace.seconds) for pace in paces if math.isfinite(pace.seconds)]
        speed.expect(model.card.name, finite)
    return choose_max_batch(paces, sizes(model))


def _expected_errors() -> tuple[type[Exception], ...]:
    from denoised.jobs.errors import StoreError
    from denoised.model.errors import ModelError
    from denoised.worker.errors import WorkerError

    return (ModelError, StoreError, WorkerError)


if __name__ == "__main__":
    escape_unencodable()
    cli(prog_name="denoised worker")
