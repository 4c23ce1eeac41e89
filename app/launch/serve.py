"""`denoised serve`: store, API and workers as child processes of one supervisor."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from json import dumps
from pathlib import Path

import httpx

from denoised.app.admission.catalog import Catalog
from denoised.app.admission.queue.job_queue import JobQueue
from denoised.app.launch.addresses import local_url
from denoised.app.launch.child import Child
from denoised.app.launch.data_lock import DataDirectoryLock
from denoised.app.launch.devices import WorkerDevice, find_devices
from denoised.app.launch.preflight import (
    check_clock,
    check_data_dir,
    check_host,
    check_models,
    check_port,
    check_results,
    check_store,
    find_model,
)
from denoised.app.launch.serve_settings import ServeSettings
from denoised.app.launch.socket_address import reachable_socket, socket_url
from denoised.app.launch.status_line import StatusLine
from denoised.app.launch.supervisor import Supervisor
from denoised.command_line.service_options import TORCH_ENVIRONMENT
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.redis.connection import connect
from denoised.jobs.store.store import Store
from denoised.model.serving.card import ModelCard

STORE_START_SECONDS, SERVICE_START_SECONDS = 60.0, 180.0
NO_SECRETS = {"DENOISED_API_KEYS": "", "DENOISED_WEBHOOK_SECRETS": ""}  # for the children that do not need them


def run_service(settings: ServeSettings, print_line: Callable[[str], None]) -> None:
    """Run store, API and workers until SIGINT or SIGTERM.

    Raises:
        LaunchError: if they cannot start.
    """
    folders, devices = check_before_start(settings), find_devices(settings.devices)
    with DataDirectoryLock(settings.data_dir), reachable_socket(settings.data_dir) as socket:
        supervisor = Supervisor()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: supervisor.request_stop())
        try:
            redis_url = _start_all(supervisor, settings, folders, devices, socket)
            store = Store(connect(redis_url))
            catalog = Catalog(store)
            if not supervisor.stopping:
                print_line(ready_message(settings.host, settings.port, settings.requires_key, _cards(catalog)))
            with _status_line(settings, catalog, JobQueue(connect(redis_url), store, max_attempts=1)):
                supervisor.watch()
            print_line("stopping …")
        finally:
            supervisor.stop()


def check_before_start(settings: ServeSettings) -> list[str]:
    """Run the checks that need nothing to be started, and download models that are not here.

    Returns:
        The folders of `settings.models`. A worker that is restarted later loads the same commits again.

    Raises:
        LaunchError: for the first problem.
    """
    check_host(settings.host, settings.requires_key, settings.trust_network)
    check_port(settings.host, settings.port)
    check_data_dir(settings.data_dir)
    check_clock()
    if settings.redis_url is not None:
        check_store(settings.redis_url)
    if settings.results_url is not None:
        check_results(settings.results_url, settings.redis_url)
    folders = [find_model(model, settings.precision) for model in settings.models]
    check_models(folders)
    return folders


def ready_message(host: str, port: int, requires_key: bool, cards: Sequence[ModelCard]) -> str:
    """The server's address, its models, and a curl command to paste.

    requires_key: the API requires a key. The browser sends none when it opens a page, so the message then links to the
        documentation page that needs none.
    cards: of the served models, the default first.
    """
    url = local_url(host, port)
    docs = "playground/docs.html" if requires_key else "docs"
    bearer = """-H "Authorization: Bearer $DENOISED_API_KEY" """ if requires_key else ""
    name, body = example_request(cards[0]) if cards else ("picture", {})
    models = ", ".join(card.name for card in cards) + (" (the first is the default)" if len(cards) > 1 else "")
    return (
        f"denoised is ready on {url} (docs: {url}/{docs}, stop: Ctrl-C)\n"
        f"  models: {models}\n"
        f"  curl -sS {url}/generate {bearer}-H 'Content-Type: application/json' -H 'Accept: image/png' "
        f"-d {shlex.quote(dumps(body, ensure_ascii=False))} -o {name}.png"
    )


def example_request(card: ModelCard) -> tuple[str, dict[str, str]]:
    """The name of a file, and the body of a request for a picture of a model."""
    if card.prompt_guide.examples:
        text, body = card.prompt_guide.examples[0], {"prompt": card.prompt_guide.examples[0]}
    elif "prompt" in card.inputs:
        text, body = "goat", {"prompt": "a goat"}
    elif card.labels:
        text, body = card.labels[0], {"label": card.labels[0]}
    else:
        return "picture", {}
    words = re.findall("[a-z0-9]+", text.split(",")[0].lower())
    return "-".join(word for word in words if word not in ("a", "an", "the")) or "picture", body


def _cards(catalog: Catalog) -> Sequence[ModelCard]:
    """The served models; none if Redis does not answer, which ends nothing."""
    with contextlib.suppress(StoreUnavailable):
        return catalog.cards()
    return ()


def _status_line(settings: ServeSettings, catalog: Catalog, queue: JobQueue) -> AbstractContextManager[object]:
    """The status line, where there is a terminal for people."""
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if not on_terminal or settings.log_format == "json":
        return contextlib.nullcontext()
    return StatusLine(sys.stdout, catalog, queue)


def _start_all(
    supervisor: Supervisor,
    settings: ServeSettings,
    folders: Sequence[str],
    devices: Sequence[WorkerDevice],
    socket: Path,
) -> str:
    """Start every child, and wait until the service is ready. Returns the store's URL."""
    logging = {"DENOISED_LOG_FORMAT": settings.log_format}
    redis_url = settings.redis_url
    if redis_url is None:
        redis_url = _start_store(supervisor, settings.data_dir, socket, logging)
    environment = {"REDIS_URL": redis_url, **logging}
    if settings.results_url is not None:
        environment["DENOISED_RESULTS_URL"] = settings.results_url
    api_arguments = ["api", "--host", settings.host, "--port", str(settings.port)]
    api_arguments += ["--trust-network"] if settings.trust_network else []
    supervisor.start(Child("api", "denoised.app", api_arguments, environment))
    for device in devices:
        supervisor.start(worker_child(settings, folders, device, environment))
    url = local_url(settings.host, settings.port)
    supervisor.wait_until(lambda: _is_ready(url), "the service was ready", SERVICE_START_SECONDS)
    return redis_url


def worker_child(
    settings: ServeSettings, folders: Sequence[str], device: WorkerDevice, environment: Mapping[str, str]
) -> Child:
    """The worker of a device."""
    arguments = [*settings.worker_arguments, *(text for folder in folders for text in ("--model", folder))]
    return Child(
        f"worker {device.name}".strip(),
        "denoised.worker",
        [*arguments, *device.arguments],
        {**TORCH_ENVIRONMENT, **os.environ, **environment, **NO_SECRETS, **device.environment},
        cores=device.cores,
    )


def _start_store(supervisor: Supervisor, data_dir: Path, socket: Path, environment: Mapping[str, str]) -> str:
    # The other children write to the store until they exit.
    arguments = ["store", "--data-dir", str(data_dir)]
    supervisor.start(Child("store", "denoised.app", arguments, {**environment, **NO_SECRETS}, stops_last=True))
    url = socket_url(socket)
    supervisor.wait_until(lambda: _store_answers(url), "the store answered", STORE_START_SECONDS)
    return url


def _store_answers(url: str) -> bool:
    try:
        Store(connect(url)).ping()
    except StoreUnavailable:
        return False
    return True


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2, trust_env=False, verify=False).status_code == 200  # plain HTTP
    except httpx.HTTPError:
        return False
