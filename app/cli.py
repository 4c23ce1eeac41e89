"""The `denoised` command. Every option is also an environment variable, DENOISED_ and its name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.settings import TORCH_ENVIRONMENT
from worker.errors import StoreUnavailable
from worker.log import to_stderr

if TYPE_CHECKING:
    from app.keys import KeyRing

DEFAULT_REDIS = "redis://127.0.0.1:6379/0"
DEFAULT_URL = "http://127.0.0.1:8000"
MATCH, DIFFERENT, TROUBLE = 0, 1, 2  # exit codes of verify, as of cmp
PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

cli = typer.Typer(
    name="denoised",
    help="denoised, the denoising daemon: serves noise-predicting diffusion models over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _env(name: str, help: str, *flags: str, **limits: Any) -> Any:
    """An option that can also be set as DENOISED_`name`."""
    return typer.Option(*flags, envvar=f"DENOISED_{name}", help=help, **limits)


Host = Annotated[str, _env("HOST", "address to listen on")]
Port = Annotated[int, _env("PORT", "port to listen on", min=1, max=65535)]
TrustNetwork = Annotated[
    bool, _env("TRUST_NETWORK", "listen beyond this machine without API keys: something else keeps strangers out")
]
Url = Annotated[str, _env("URL", "the server")]
Key = Annotated[str | None, _env("API_KEY", "an API key, if the server wants one")]
RedisUrl = Annotated[str | None, typer.Option(envvar="REDIS_URL", help="an external Redis or Valkey")]


@cli.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data_dir: Annotated[
        Path | None, _env("DATA_DIR", "where queue and results are kept [default: denoised in the user's data folder]")
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="a diffusers folder to serve beside the bundled models; may be repeated [env: DENOISED_MODELS]"
        ),
    ] = None,
    max_batch: Annotated[
        int | None, _env("MAX_BATCH", "images in one evaluation; measured at the start if not set", min=1, max=1024)
    ] = None,
    device: Annotated[str | None, _env("DEVICE", "cpu, cuda, cuda:1, mps")] = None,
    redis_url: RedisUrl = None,
    trust_network: TrustNetwork = False,
) -> None:
    """Start everything on this machine: an embedded Valkey, the API and one worker."""
    from app.serve import ChildRefused, ServeError, ServeSettings
    from app.serve import serve as run

    if not os.environ.get("DENOISED_API_KEYS") and not os.environ.get("DENOISED_API_KEYS_FILE"):
        _refuse_strangers("serve", host, trust_network)
    given = {"--max-batch": max_batch, "--device": device}
    arguments = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    arguments += [text for folder in model or [] for text in ("--model", str(folder))]
    folder = (data_dir or _data_folder()).absolute()
    to_stderr()
    settings = ServeSettings(host, port, folder, redis_url, arguments, trust_network)
    try:
        run(settings, say=lambda text: print(text, flush=True))  # noqa: T201
    except ChildRefused as refused:
        raise typer.Exit(1) from refused
    except ServeError as error:
        _refuse("serve", error)


@cli.command()
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    redis_url: RedisUrl = DEFAULT_REDIS,
    api_keys: Annotated[str, _env("API_KEYS", "accepted keys, comma-separated; none = local programs only")] = "",
    api_keys_file: Annotated[
        Path | None, _env("API_KEYS_FILE", "a file with one key a line, as `denoised key` prints them")
    ] = None,
    allowed_hosts: Annotated[str, _env("ALLOWED_HOSTS", "host names accepted beside the local ones")] = "",
    allowed_origins: Annotated[str, _env("ALLOWED_ORIGINS", "browser origins that may call")] = "",
    trust_network: TrustNetwork = False,
    max_wait: Annotated[float, _env("MAX_WAIT", "seconds a client may wait for its job", min=0.1)] = 60.0,
    max_queue: Annotated[int, _env("MAX_QUEUE", "jobs that may wait", min=1)] = 1000,
    queue_limit: Annotated[int, _env("QUEUE_LIMIT", "evaluations of the network that may wait", min=1)] = 100_000,
    queue_limit_per_key: Annotated[
        int, _env("QUEUE_LIMIT_PER_KEY", "of these, what one API key's jobs may make up", min=1)
    ] = 50_000,
    max_attempts: Annotated[int, _env("MAX_ATTEMPTS", "times a job is begun when workers die", min=1)] = 3,
    result_ttl: Annotated[int, _env("RESULT_TTL", "seconds that results are kept", min=1)] = 86_400,
) -> None:
    """Start the HTTP front end alone, on a Redis that workers share."""
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
        run(settings)
    except StoreUnavailable as error:
        _refuse("api", error)


@cli.command()
def key(name: Annotated[str, typer.Argument(help="whose key it is: jobs belong to names")] = "default") -> None:
    """Make an API key: prints it, once, and the line that lets it in.

    The line goes into the file that DENOISED_API_KEYS_FILE names; it holds the key's hash alone.
    """
    from app.keys import KeyFileError, new_key

    try:
        made, line = new_key(name)
    except KeyFileError as error:
        _refuse("key", error)
    typer.echo(made)
    typer.echo(line)


@cli.command(hidden=True)
def store(
    data_dir: Annotated[Path, typer.Option(help="where its files lie")],
    socket: Annotated[Path, typer.Option(help="its Unix socket")],
) -> None:
    """Run the embedded Valkey (a child of `serve`)."""
    from app.embedded import run

    to_stderr()
    raise typer.Exit(run(data_dir, socket))


@cli.command(context_settings=PASSED_ON, add_help_option=False)
def worker(context: typer.Context) -> None:
    """Serve models from the queue (needs torch). See: denoised worker --help"""
    _become("worker", context.args)


@cli.command(context_settings=PASSED_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a model (needs torch). See: denoised train --help"""
    _become("model", ["train", *context.args])


@cli.command(context_settings=PASSED_ON, add_help_option=False)
def train_features(context: typer.Context) -> None:
    """Train the network in whose features pictures are compared (needs torch). See: denoised train-features --help"""
    _become("model", ["train-features", *context.args])


@cli.command(context_settings=PASSED_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Measure a model's pictures: FID, KID, … (needs torch). See: denoised evaluate --help"""
    _become("model", ["evaluate", *context.args])


@cli.command(context_settings=PASSED_ON, add_help_option=False)
def likelihood(context: typer.Context) -> None:
    """Bits per dimension of pictures under a model (needs torch). See: denoised likelihood --help"""
    _become("model", ["likelihood", *context.args])


@cli.command()
def generate(
    label: Annotated[str | None, _env("LABEL", "class name or index; none = unconditional")] = None,
    n: Annotated[int, _env("N", "images", "-n")] = 1,
    out: Annotated[Path, _env("OUT", "folder for the pictures")] = Path(),
    model: Annotated[str | None, _env("MODEL", "a served model's name")] = None,
    seed: Annotated[int | None, _env("SEED", "of the first image; drawn if left out")] = None,
    sampler: Annotated[str | None, _env("SAMPLER", "one of those in GET /models")] = None,
    steps: Annotated[int | None, _env("STEPS", "steps of the sampler")] = None,
    eta: Annotated[float | None, _env("ETA", "noise of ddim, 0 … 1")] = None,
    guidance_scale: Annotated[float | None, _env("GUIDANCE_SCALE", "1 = off … 20")] = None,
    guidance_rescale: Annotated[float | None, _env("GUIDANCE_RESCALE", "0 = off … 1")] = None,
    spacing: Annotated[str | None, _env("SPACING", "of the timesteps: leading, trailing or linspace")] = None,
    karras: Annotated[bool | None, _env("KARRAS", "noise levels of Karras et al. 2022", "--karras/--no-karras")] = None,
    format: Annotated[str | None, _env("FORMAT", "png, webp or jpeg")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Ask a running server for pictures and write them to a folder."""
    from app.client import Client, ServiceError

    asked = {
        "label": int(label) if label is not None and label.isdecimal() else label,
        "n": n,
        "model": model,
        "seed": seed,
        "sampler": sampler,
        "steps": steps,
        "eta": eta,
        "guidance_scale": guidance_scale,
        "guidance_rescale": guidance_rescale,
        "spacing": spacing,
        "karras": karras,
        "format": format,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Client(url, key) as client:
            job = client.submit(**{name: value for name, value in asked.items() if value is not None})
            finished = _follow(client, job)
            for path in _save(client, finished, out):
                typer.echo(path)
    except (ServiceError, OSError) as error:
        _refuse("generate", error)


@cli.command()
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PNGs as generate makes them")],
    as_json: Annotated[bool, _env("JSON", "one line of JSON a file, as POST /verify answers", "--json")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Have a running server make pictures again from what they carry, and compare the bytes.

    Exit code 0: all are the same. 1: some are not. 2: some could not be made again.
    """
    from app.client import Client

    code = MATCH
    with Client(url, key) as client:
        for file in files:
            outcome = _verified(client, file)
            _tell(file, outcome, as_json)
            code = max(code, TROUBLE if "error" in outcome else MATCH if outcome["match"] else DIFFERENT)
    raise typer.Exit(code)


def main() -> None:
    """The console script."""
    cli(prog_name="denoised")


def _follow(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Show progress until the job is over; Ctrl-C cancels it. Returns it as it ended."""
    from app.client import ServiceError

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    result = job
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(job["status"], total=job["steps"])
            for event in client.events(job["id"]):
                progress.update(task, description=event["type"], completed=event.get("step"))
                result = event.get("result") or result
    except KeyboardInterrupt:
        client.cancel(job["id"])
        raise ServiceError(f"job {job['id']} was canceled") from None
    if result["status"] != "succeeded":
        reason = (result["error"] or {}).get("message", "")
        raise ServiceError(f"job {job['id']} {result['status']}{': ' + reason if reason else ''}")
    return result


def _save(client: Any, job: dict[str, Any], out: Path) -> list[Path]:
    paths = []
    for image in job["images"]:
        name = "".join(c if c.isalnum() else "-" for c in job["label"] or job["model"])
        path = out / f"{name}-{image['seed']}.{image['format']}"
        path.write_bytes(client.image(image["url"]))
        paths.append(path)
    return paths


def _verified(client: Any, file: Path) -> dict[str, Any]:
    """The service's answer for a file, or {"error": why there is none}."""
    from app.client import ServiceError

    try:
        return dict(client.verify(file.read_bytes()))
    except ServiceError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"cannot be read ({error.strerror})"}


def _tell(file: Path, outcome: dict[str, Any], as_json: bool) -> None:
    """One line about a file: on stdout, or on stderr where it could not be made again."""
    if as_json:
        typer.echo(json.dumps({"file": str(file), **outcome}))
    elif "error" in outcome:
        _complain("verify", f"{file}: {outcome['error']}")
    else:
        request = outcome["request"]
        made = ", ".join(str(part) for part in (request["model"], request.get("label")) if part is not None)
        verdict = "the bytes are equal" if outcome["match"] else f"the bytes differ, because {outcome['reason']}"
        typer.echo(_printable(f"{file}: made again, {verdict} ({made}, seed {request['seed']})"))


def _refuse_strangers(command: str, host: str, trusted: bool) -> None:
    """Without keys only programs on this machine are served, whatever they say of themselves."""
    local = host == "localhost" or host == "::1" or host.startswith("127.")
    if not local and not trusted:
        _refuse(
            command,
            f"--host {host} would serve the whole network without API keys: set DENOISED_API_KEYS, or --trust-network "
            "where something else keeps strangers out",
        )


def _become(package: str, arguments: list[str]) -> None:
    """Go on as `python -m package`: these programs need torch, which this one never imports."""
    environment = TORCH_ENVIRONMENT | os.environ
    os.execve(sys.executable, [sys.executable, "-m", package, *arguments], environment)


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
        _refuse("api", error)


def _refuse(command: str, error: object) -> NoReturn:
    """One line on stderr, exit code 1."""
    _complain(command, error)
    raise typer.Exit(1)


def _complain(command: str, error: object) -> None:
    """One line on stderr."""
    Console(stderr=True).print(
        _printable(f"denoised {command}: {error}"), style="red", markup=False, highlight=False, soft_wrap=True
    )


def _printable(text: str) -> str:
    """Without what steers a terminal: files and servers may have been written by anybody."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
