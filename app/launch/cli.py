"""`python -m denoised.app`: the commands that serve. `denoised serve` and its siblings run this program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from denoised.app.launch.console import refuse
from denoised.app.launch.options import AsJson, PlainHelp, env
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.log import to_stderr

if TYPE_CHECKING:
    from denoised.app.http.api_keys import KeyRing

DEFAULT_REDIS = "redis://127.0.0.1:6379/0"

cli = typer.Typer(cls=PlainHelp, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


Host = Annotated[str, env("HOST", "address to listen on")]
IoBinding = Annotated[int, env("PORT", "port to listen on", min=1, max=65535)]
TrustNetwork = Annotated[
    bool, env("TRUST_NETWORK", "listen beyond this machine without API keys: something else keeps strangers out")
]
DataDir = Annotated[
    Path | None, env("DATA_DIR", "where queue and results are kept (default: denoised in the user's data folder)")
]
ModelFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--model",
        help="a diffusers folder to serve beside the bundled models; may be repeated [env var: DENOISED_MODELS]",
    ),
]
Device = Annotated[str | None, env("DEVICE", "cpu, cuda, cuda:1, mps")]
RedisUrl = Annotated[str | None, typer.Option(envvar="REDIS_URL", help="an external Redis or Valkey")]


@cli.command()
def serve(
    host: Host = "127.0.0.1",
    port: IoBinding = 8000,
    data_dir: DataDir = None,
    model: ModelFolders = None,
    max_batch: Annotated[
        int | None, env("MAX_BATCH", "images in one evaluation; measured at the start if not set", min=1, max=1024)
    ] = None,
    device: Device = None,
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"] | None, env("PRECISION", "of a CUDA device [default: float32]")
    ] = None,
    redis_url: RedisUrl = None,
    trust_network: TrustNetwork = False,
) -> None:
    """Start everything on this machine: an embedded Valkey, the API and one worker."""
    from denoised.app.launch.supervisor import ChildRefused, ServeError, ServeSettings
    from denoised.app.launch.supervisor import serve as run

    keys = any(os.environ.get(name) for name in ("DENOISED_API_KEYS", "DENOISED_API_KEYS_FILE"))
    if not keys:
        _refuse_strangers("serve", host, trust_network)
    arguments = _worker_arguments(model, device)
    arguments += [] if max_batch is None else ["--max-batch", str(max_batch)]
    arguments += [] if precision is None else ["--precision", precision]
    folder = (data_dir or _data_folder()).absolute()
    to_stderr()
    models = model or [Path(name) for name in _listed(os.environ.get("DENOISED_MODELS", ""))]
    settings = ServeSettings(host, port, folder, redis_url, arguments, trust_network, models, keys)
    try:
        run(settings, say=lambda text: print(text, flush=True))  # noqa: T201
    except ChildRefused as refused:
        raise typer.Exit(1) from refused
    except ServeError as error:
        refuse("serve", error)


@cli.command()
def api(
    host: Host = "127.0.0.1",
    port: IoBinding = 8000,
    redis_url: RedisUrl = DEFAULT_REDIS,
    api_keys: Annotated[str, env("API_KEYS", "accepted keys, comma-separated; none = local programs only")] = "",
    api_keys_file: Annotated[
        Path | None, env("API_KEYS_FILE", "a file with one key a line, as `denoised key` prints them")
    ] = None,
    allowed_hosts: Annotated[str, env("ALLOWED_HOSTS", "host names accepted beside the local ones")] = "",
    allowed_origins: Annotated[str, env("ALLOWED_ORIGINS", "browser origins that may call")] = "",
    trust_network: TrustNetwork = False,
    max_wait: Annotated[float, env("MAX_WAIT", "seconds a client may wait for its job", min=0.1)] = 60.0,
    max_queue: Annotated[int, env("MAX_QUEUE", "jobs that may wait", min=1)] = 1000,
    queue_limit: Annotated[int, env("QUEUE_LIMIT", "evaluations of the network that may wait", min=1)] = 100_000,
    queue_limit_per_key: Annotated[
        int, env("QUEUE_LIMIT_PER_KEY", "of these, what one API key's jobs may make up", min=1)
    ] = 50_000,
    max_attempts: Annotated[int, env("MAX_ATTEMPTS", "times a job is begun when workers die", min=1)] = 3,
    result_ttl: Annotated[int, env("RESULT_TTL", "seconds that results are kept", min=1)] = 86_400,
) -> None:
    """Start the HTTP front end alone, on a Redis that workers share."""
    from denoised.app.launch.server import serve as run
    from denoised.app.launch.supervisor import ServeError, check_port
    from denoised.app.settings import ApiSettings

    keys = _key_ring(api_keys, api_keys_file)
    if not keys:
        _refuse_strangers("api", host, trust_network)
    settings = ApiSettings(
        redis_url=redis_url or DEFAULT_REDIS,
        host=host,
        port=port,
        api_keys=keys,
        allowed_hosts=frozenset(name.lower() for name in _listed(allowed_hosts)),
        allowed_origins=frozenset(_listed(allowed_origins)),
        max_wait=max_wait,
        max_queue=max_queue,
        queue_limit=queue_limit,
        queue_limit_per_key=queue_limit_per_key,
        max_attempts=max_attempts,
        result_ttl=result_ttl,
    )
    to_stderr()
    try:
        check_port(host, port)
        run(settings)
    except (ServeError, StoreUnavailable) as error:
        refuse("api", error)


@cli.command()
def key(name: Annotated[str, typer.Argument(help="whose key it is: jobs belong to names")] = "default") -> None:
    """Make an API key: prints it, once, and the line that lets it in.

    The line goes into the file that DENOISED_API_KEYS_FILE names; it holds the key's hash alone.
    """
    from denoised.app.http.api_keys import KeyFileError, new_key

    try:
        made, line = new_key(name)
    except KeyFileError as error:
        refuse("key", error)
    typer.echo(made)
    typer.echo(line)


@cli.command()
def doctor(
    host: Host = "127.0.0.1",
    port: IoBinding = 8000,
    data_dir: DataDir = None,
    model: ModelFolders = None,
    device: Device = None,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Look whether this machine can serve (device, store, models, port, disk, clock), and say what to do.

    Give it the options that `serve` is given. Exit code 1 when there is a problem; warnings are none. With --json:
    {"ok", "findings": [{"check", "state", "message", "advice"}]}.
    """
    from denoised.app.launch.diagnostics import Patient, examine
    from denoised.app.launch.doctor_report import tell

    folder = (data_dir or _data_folder()).absolute()
    raise typer.Exit(tell(examine(Patient(host, port, folder, redis_url, _worker_arguments(model, device))), as_json))


@cli.command(hidden=True)
def store(
    data_dir: Annotated[Path, typer.Option(help="where its files lie")],
    socket: Annotated[Path, typer.Option(help="its Unix socket")],
) -> None:
    """Run the embedded Valkey (a child of `serve`)."""
    from denoised.app.launch.embedded_store import run

    to_stderr()
    raise typer.Exit(run(data_dir, socket))


def main() -> None:
    """Run one of the server's commands."""
    cli(prog_name="denoised")


def _refuse_strangers(command: str, host: str, trusted: bool) -> None:
    """Without keys only programs on this machine are served, whatever they say of themselves."""
    local = host == "localhost" or host == "::1" or host.startswith("127.")
    if not local and not trusted:
        refuse(
            command,
            f"--host {host} would serve the whole network without API keys: set DENOISED_API_KEYS, or --trust-network "
            "where something else keeps strangers out",
        )


def _worker_arguments(model: list[Path] | None, device: str | None) -> list[str]:
    """What is passed on to a worker."""
    arguments = [] if device is None else ["--device", device]
    return arguments + [text for folder in model or [] for text in ("--model", str(folder))]


def _data_folder() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "denoised"


def _listed(text: str) -> set[str]:
    return {item.strip() for item in text.split(",") if item.strip()}


def _key_ring(keys: str, file: Path | None) -> KeyRing:
    """The keys of the environment and of the file, as hashes."""
    from denoised.app.http.api_keys import KeyFileError, KeyRing

    os.environ.pop("DENOISED_API_KEYS", None)
    try:
        ring = KeyRing.from_keys(_listed(keys), "DENOISED_API_KEYS")
        return ring | KeyRing.read(file) if file is not None else ring
    except KeyFileError as error:
        refuse("api", error)
