"""`python -m denoised.app`: the server's commands. `denoised serve`, `api`, `key` and `doctor` run this program."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from denoised.app.launch.arguments import data_folder, requires_key, worker_arguments
from denoised.app.launch.options import (
    AllowedHosts,
    AllowedOrigins,
    ApiKeys,
    ApiKeysFile,
    DataDir,
    Device,
    Devices,
    Host,
    LogFormatOption,
    MaxAttempts,
    MaxInputBytesPerKey,
    MaxQueue,
    MaxQueuePerKey,
    MaxStreamsPerKey,
    MaxWait,
    Port,
    Precision,
    QueueLimit,
    QueueLimitPerKey,
    QueueWithoutWorker,
    RedisUrl,
    ResultLinks,
    TrustNetwork,
    WebhookHosts,
    WebhookPrivateHosts,
    WebhookSecrets,
    WebhookTimeout,
)
from denoised.command_line.console import escape_unencodable, exit_with_error
from denoised.command_line.options import AsJson, CommandGroup
from denoised.command_line.service_options import (
    DEFAULT_REDIS,
    GIB,
    Controlnets,
    Loras,
    MaxBatch,
    MaxFrameBytes,
    MaxPictureBytes,
    MaxResumeBytes,
    Models,
    ResultsUrl,
    ResultTtl,
)
from denoised.jobs.errors import StoreError
from denoised.jobs.log import log_to_stderr

if TYPE_CHECKING:
    from denoised.app.http.api_keys import KeyRing
    from denoised.app.settings import ApiSettings
    from denoised.app.webhooks.webhook_settings import WebhookSettings

cli = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data_dir: DataDir = None,
    model: Models = None,
    loras: Loras = None,
    controlnets: Controlnets = None,
    max_batch: MaxBatch = None,
    device: Device = None,
    devices: Devices = None,
    precision: Precision = None,
    redis_url: RedisUrl = None,
    results_url: ResultsUrl = None,
    trust_network: TrustNetwork = False,
    log_format: LogFormatOption = "auto",
) -> None:
    """Start an embedded Valkey, the API and workers on this machine: one, or one per device with --devices."""
    from denoised.app.launch.errors import ChildStartError, LaunchError
    from denoised.app.launch.serve import run_service
    from denoised.app.launch.serve_settings import ServeSettings

    log_to_stderr(log_format)
    folder = data_folder("serve", data_dir)
    arguments = worker_arguments(None, loras, controlnets, device, precision)
    arguments += [] if max_batch is None else ["--max-batch", str(max_batch)]
    models = model or sorted(_split(os.environ.get("DENOISED_MODELS", "")))
    settings = ServeSettings(
        host,
        port,
        folder,
        redis_url,
        arguments,
        trust_network,
        requires_key(),
        models,
        precision or "float32",
        devices,
        log_format,
        results_url or None,
    )
    try:
        run_service(settings, print_line=lambda text: print(text, flush=True))  # noqa: T201
    except ChildStartError as error:
        raise typer.Exit(1) from error
    except LaunchError as error:
        exit_with_error("serve", error)


@cli.command()
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    redis_url: RedisUrl = DEFAULT_REDIS,
    api_keys: ApiKeys = "",
    api_keys_file: ApiKeysFile = None,
    allowed_hosts: AllowedHosts = "",
    allowed_origins: AllowedOrigins = "",
    trust_network: TrustNetwork = False,
    max_wait: MaxWait = 60.0,
    max_queue: MaxQueue = 1000,
    max_queue_per_key: MaxQueuePerKey = None,
    queue_limit: QueueLimit = 100_000,
    queue_limit_per_key: QueueLimitPerKey = 50_000,
    max_streams_per_key: MaxStreamsPerKey = 256,
    max_input_bytes_per_key: MaxInputBytesPerKey = 256 * 1024 * 1024,
    max_attempts: MaxAttempts = 3,
    queue_without_worker: QueueWithoutWorker = False,
    result_ttl: ResultTtl = 86_400,
    results_url: ResultsUrl = None,
    max_frame_bytes: MaxFrameBytes = 20 * GIB,
    max_picture_bytes: MaxPictureBytes = 100 * GIB,
    max_resume_bytes: MaxResumeBytes = 10 * GIB,
    result_links: ResultLinks = 0,
    webhook_hosts: WebhookHosts = "",
    webhook_private_hosts: WebhookPrivateHosts = "",
    webhook_secrets: WebhookSecrets = "",
    webhook_timeout: WebhookTimeout = 10.0,
    log_format: LogFormatOption = "auto",
) -> None:
    """Start only the HTTP front end, on a Redis shared with the workers."""
    log_to_stderr(log_format)
    from denoised.app.settings import ApiSettings
    from denoised.jobs.results.settings import ResultSettings

    settings = ApiSettings(
        redis_url=redis_url or DEFAULT_REDIS,
        host=host,
        port=port,
        api_keys=_key_ring(api_keys, api_keys_file),
        api_keys_file=api_keys_file,
        allowed_hosts=frozenset(name.lower() for name in _split(allowed_hosts)),
        allowed_origins=frozenset(_split(allowed_origins)),
        max_wait=max_wait,
        max_queue=max_queue,
        max_queue_per_key=max_queue_per_key,
        queue_limit=queue_limit,
        queue_limit_per_key=queue_limit_per_key,
        max_streams_per_key=max_streams_per_key,
        max_input_bytes_per_key=max_input_bytes_per_key,
        max_attempts=max_attempts,
        result_ttl=result_ttl,
        results=ResultSettings(results_url or None, max_frame_bytes, max_picture_bytes, max_resume_bytes, result_links),
        webhooks=_webhooks(webhook_hosts, webhook_private_hosts, webhook_secrets, webhook_timeout),
        queue_without_worker=queue_without_worker,
    )
    _serve_api(settings, trust_network)


@cli.command()
def key(
    name: Annotated[str, typer.Argument(help="name of the key's owner; each owner sees only its own jobs")] = "default",
) -> None:
    """Create an API key. Prints the key, then its line for the file that DENOISED_API_KEYS_FILE names.

    The line contains only a hash, so the key cannot be printed again.
    """
    from denoised.app.http.api_keys import KeyFileError, new_key

    try:
        made, line = new_key(name)
    except KeyFileError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(made)
    typer.echo(line)


@cli.command()
def doctor(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data_dir: DataDir = None,
    model: Models = None,
    loras: Loras = None,
    controlnets: Controlnets = None,
    max_batch: MaxBatch = None,
    device: Device = None,
    devices: Devices = None,
    precision: Precision = None,
    redis_url: RedisUrl = None,
    results_url: ResultsUrl = None,
    trust_network: TrustNetwork = False,
    as_json: AsJson = False,
) -> None:
    """Check whether this machine can serve (device, store, models, port, disk, clock), and say what to fix.

    Pass the options that you pass to `serve`. The exit code is 1 if `serve` would refuse to start; warnings do
    not count. With --json: {"ok", "findings": [{"check", "state", "message", "advice"}]}.
    """
    from denoised.app.launch.diagnostics import run_checks
    from denoised.app.launch.doctor_report import print_findings
    from denoised.app.launch.serve_settings import ServeSettings

    folder = data_folder("doctor", data_dir)
    arguments = worker_arguments(model, loras, controlnets, device, precision)
    settings = ServeSettings(
        host,
        port,
        folder,
        redis_url,
        arguments,
        trust_network,
        requires_key(),
        devices=devices,
        results_url=results_url or None,
    )
    raise typer.Exit(print_findings(run_checks(settings), as_json))


@cli.command(hidden=True)
def store(
    data_dir: Annotated[Path, typer.Option(help="folder for its files and its Unix socket")],
    log_format: LogFormatOption = "auto",
) -> None:
    """Run the embedded Valkey, as a child process of `serve`."""
    from denoised.app.launch.embedded_store import run

    log_to_stderr(log_format)
    raise typer.Exit(run(data_dir))


def main() -> None:
    """Run one of the server's commands."""
    escape_unencodable()
    cli(prog_name="denoised")


def _serve_api(settings: ApiSettings, trust_network: bool) -> None:
    from denoised.app.launch.errors import LaunchError, StoreAbsent
    from denoised.app.launch.http_server import run_api
    from denoised.app.launch.preflight import check_clock, check_host, check_port, check_results, check_store

    try:
        check_host(settings.host, bool(settings.api_keys), trust_network)
        check_port(settings.host, settings.port)
        check_clock()
        with contextlib.suppress(StoreAbsent):  # the API answers 503 until Redis is there
            check_store(settings.redis_url)
            if settings.results.url is not None:
                check_results(settings.results.url, settings.redis_url)
        run_api(settings)
    except (LaunchError, StoreError) as error:
        exit_with_error("api", error)


def _split(text: str) -> set[str]:
    return {item.strip() for item in text.split(",") if item.strip()}


def _webhooks(hosts: str, private_hosts: str, secrets: str, timeout: float) -> WebhookSettings:
    from denoised.app.webhooks.webhook_settings import WebhookSettings, WebhookSettingsError

    os.environ.pop("DENOISED_WEBHOOK_SECRETS", None)
    newest_first = [secret.strip() for secret in secrets.split(",") if secret.strip()]
    try:
        return WebhookSettings.parse(_split(hosts), _split(private_hosts), newest_first, timeout)
    except WebhookSettingsError as error:
        exit_with_error("api", error)


def _key_ring(keys: str, file: Path | None) -> KeyRing:
    """The keys of DENOISED_API_KEYS and of the file, as hashes."""
    from denoised.app.http.api_keys import KeyFileError, KeyRing

    os.environ.pop("DENOISED_API_KEYS", None)
    try:
        ring = KeyRing.from_keys(_split(keys), "DENOISED_API_KEYS")
        return ring | KeyRing.read(file) if file is not None else ring
    except KeyFileError as error:
        exit_with_error("api", error)
