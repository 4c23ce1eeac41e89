"""The `denoised` command: those that serve, here; those that ask a server, in `app.terminal`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.settings import TORCH_ENVIRONMENT
from app.terminal import commands
from app.terminal.options import AsJson, PlainHelp, env
from app.terminal.speech import EXIT_CODES, refuse
from worker.errors import StoreUnavailable
from worker.log import to_stderr

if TYPE_CHECKING:
    from app.keys import KeyRing

DEFAULT_REDIS = "redis://127.0.0.1:6379/0"
SERVE, TRAIN = "Serve", "Train and measure"
PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

cli = typer.Typer(
    name="denoised",
    cls=PlainHelp,
    help="denoised, the denoising daemon: serves noise-predicting diffusion models over HTTP.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denoised {version('denoised')}")
        raise typer.Exit


@cli.callback()
def _before(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="which this is")] = False,
) -> None:
    """Look at the options that go before a command."""


Host = Annotated[str, env("HOST", "address to listen on")]
Port = Annotated[int, env("PORT", "port to listen on", min=1, max=65535)]
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


@cli.command(rich_help_panel=SERVE)
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
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
    from app.serve import ChildRefused, ServeError, ServeSettings
    from app.serve import serve as run

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


@cli.command(rich_help_panel=SERVE)
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
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
    from app.serve import ServeError, check_port
    from app.server import serve as run
    from app.settings import ApiSettings

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


@cli.command(rich_help_panel=SERVE)
def key(name: Annotated[str, typer.Argument(help="whose key it is: jobs belong to names")] = "default") -> None:
    """Make an API key: prints it, once, and the line that lets it in.

    The line goes into the file that DENOISED_API_KEYS_FILE names; it holds the key's hash alone.
    """
    from app.keys import KeyFileError, new_key

    try:
        made, line = new_key(name)
    except KeyFileError as error:
        refuse("key", error)
    typer.echo(made)
    typer.echo(line)


@cli.command(rich_help_panel=SERVE)
def doctor(
    host: Host = "127.0.0.1",
    port: Port = 8000,
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
    from app.doctor import Patient, examine
    from app.terminal.findings import tell

    folder = (data_dir or _data_folder()).absolute()
    raise typer.Exit(tell(examine(Patient(host, port, folder, redis_url, _worker_arguments(model, device))), as_json))


@cli.command(hidden=True)
def store(
    data_dir: Annotated[Path, typer.Option(help="where its files lie")],
    socket: Annotated[Path, typer.Option(help="its Unix socket")],
) -> None:
    """Run the embedded Valkey (a child of `serve`)."""
    from app.embedded import run

    to_stderr()
    raise typer.Exit(run(data_dir, socket))


@cli.command(context_settings=PASSED_ON, add_help_option=False, rich_help_panel=SERVE)
def worker(context: typer.Context) -> None:
    """Serve models from the queue (needs torch). See: denoised worker --help"""
    _become("worker", context.args)


@cli.command(context_settings=PASSED_ON, add_help_option=False, rich_help_panel=TRAIN)
def train(context: typer.Context) -> None:
    """Train a model (needs torch). See: denoised train --help"""
    _become("model", ["train", *context.args])


@cli.command(context_settings=PASSED_ON, add_help_option=False, rich_help_panel=TRAIN)
def train_features(context: typer.Context) -> None:
    """Train the network in whose features pictures are compared (needs torch). See: denoised train-features --help"""
    _become("model", ["train-features", *context.args])


@cli.command(context_settings=PASSED_ON, add_help_option=False, rich_help_panel=TRAIN)
def evaluate(context: typer.Context) -> None:
    """Measure a model's pictures: FID, KID, … (needs torch). See: denoised evaluate --help"""
    _become("model", ["evaluate", *context.args])


@cli.command(context_settings=PASSED_ON, add_help_option=False, rich_help_panel=TRAIN)
def likelihood(context: typer.Context) -> None:
    """Bits per dimension of pictures under a model (needs torch). See: denoised likelihood --help"""
    _become("model", ["likelihood", *context.args])


cli.add_typer(commands.cli)


def main() -> None:
    """The console script."""
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


def _become(package: str, arguments: list[str]) -> None:
    """Go on as `python -m package`: these programs need torch, which this one never imports."""
    environment = TORCH_ENVIRONMENT | os.environ
    os.execve(sys.executable, [sys.executable, "-m", package, *arguments], environment)


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
    from app.keys import KeyFileError, KeyRing

    os.environ.pop("DENOISED_API_KEYS", None)
    try:
        ring = KeyRing.of(_listed(keys), "DENOISED_API_KEYS")
        return ring | KeyRing.read(file) if file is not None else ring
    except KeyFileError as error:
        refuse("api", error)
