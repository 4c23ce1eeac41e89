"""Fixtures for the tests of `app`: apps over a real Valkey, and a fake worker that writes to its store."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import uvicorn
from fastapi import FastAPI
from fastapi.routing import _IncludedRouter
from starlette.testclient import TestClient

from denoised.app.http.api_keys import KeyRing
from denoised.app.http.transport.connection_limits import ConnectionLimit
from denoised.app.http.transport.http_protocol import HttpProtocol
from denoised.app.http.transport.websocket_protocol import SocketProtocol
from denoised.app.launch.http_server import SEND_BUFFER_BYTES
from denoised.app.main import create_app
from denoised.app.services import Services
from denoised.app.settings import ApiSettings
from denoised.jobs.record import Image, JobRecord, QueueEstimate
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate
from denoised.jobs.worker_report import WorkerReport
from denoised.model.serving.card import ModelCard
from tests.harness import start

LABELS = ["sneaker", "Ankle Boot", "ботинок"]
PICTURE = b"\x89PNG\r\n\x1a\nnot really"


def _card(**fields: Any) -> ModelCard:
    given = {
        "name": "shoes",
        "width": 28,
        "height": 28,
        "channels": 1,
        "labels": LABELS,
        "timesteps": 1000,
        "prediction_type": "epsilon",
        "samplers": ["ddim", "ddpm", "heun"],
        "eta_samplers": ["ddim"],
        "karras_samplers": ["heun"],
        "spacings": ["leading", "trailing", "linspace", "karras", "beta", "sgm_uniform"],
        "grid": {"spacing": "trailing", "steps_offset": 0, "karras": False, "sigma_min": 0.01, "sigma_max": 157.4},
        "stages": {"heun": 2},
        "default": {"sampler": "ddim", "steps": 20, "guidance_scale": 2.5},
        "max_images": 16,
        "numerics": "fake",
        **fields,
    }
    return ModelCard.model_validate(given)


def _request(**fields: Any) -> SamplingRequest:
    given = {
        "model": "shoes",
        "label": None,
        "label_name": None,
        "n": 1,
        "seed": 7,
        "sampler": "ddim",
        "steps": 20,
        "eta": 0.0,
        "guidance_scale": 1.0,
        "format": "png",
        **fields,
    }
    return SamplingRequest(**given)


_first_app: list[FastAPI] = []


def _app(settings: ApiSettings) -> FastAPI:
    """A new app with the routers of the process's first one: FastAPI builds the routes of each anew, for 20 ms."""
    app = create_app(settings)
    if _first_app:
        first = _first_app[0].router.routes
        app.router.routes[:] = [
            shared if isinstance(shared, _IncludedRouter) else own
            for own, shared in zip(app.router.routes, first, strict=True)
        ]
    else:
        _first_app.append(app)
    return app


class FakeWorker:
    """Writes to the store what a worker would write."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.store = Store(client)

    def serve(self, *cards: ModelCard, name: str = "worker-1", speed: float | None = None) -> None:
        """Report a live worker that serves these models."""
        models = [card.model_dump() for card in cards or (_card(),)]
        self.store.workers.report(WorkerReport(name, models, 16, 0, 0, speed), ttl=600)

    def create(self, job_id: str | None = None, owner: str = "", at: float | None = None, **fields: Any) -> str:
        """A queued job that is in no RQ queue."""
        created = time.time() if at is None else at
        record = JobRecord(job_id or uuid.uuid4().hex, owner, _request(**fields), created)
        with self.client.pipeline() as pipeline:
            assert self.store.reserve(record.id, pipeline)
            self.store.create(record, {"queue_position": 0, "eta_seconds": None}, pipeline)
            pipeline.execute()
        return record.id

    def start(self, job_id: str, numerics: str = "fake") -> int:
        return start(self.store, job_id, "worker-1", numerics)

    def progress(self, job_id: str, attempt: int, number: int, *events: dict[str, Any]) -> None:
        """An update of a running attempt; by default, it has a progress event."""
        progress = {"type": "progress", "step": number, "steps": 20, "evaluations": number}
        fields = {"step": number, "evaluations": number, "mean_batch": 1.5}
        assert self.store.write(JobUpdate(job_id, attempt, number, fields=fields, events=list(events) or [progress]))

    def finish(self, job_id: str, attempt: int, number: int = 10**9, data: bytes = PICTURE) -> Image:
        """Let a job with one image succeed."""
        record = self.store.job(job_id)
        assert record is not None
        sha256 = hashlib.sha256(data).hexdigest()
        image = Image(0, record.request.seed, 28, 28, record.request.format, sha256)
        write = JobUpdate(job_id, attempt, number, images={0: data}, image_count=1)
        write.fields["images"] = f"[{_json(image)}]"
        url = f"/jobs/{job_id}/images/0"
        write.events.append({"type": "image", "index": 0, "seed": image.seed, "sha256": sha256, "url": url})
        write.end("succeeded")
        assert self.store.write(write)
        return image

    def succeeded(self, **fields: Any) -> str:
        """A job that has succeeded."""
        job_id = self.create(**fields)
        self.finish(job_id, self.start(job_id))
        return job_id


def _json(image: Image) -> str:
    import json
    from dataclasses import asdict

    return json.dumps(asdict(image))


@pytest.fixture(scope="session")
def card_of() -> Callable[..., ModelCard]:
    """`card_of(**fields)`: the card of the model `shoes`."""
    return _card


@pytest.fixture(scope="session")
def painter_of() -> Callable[..., ModelCard]:
    """`painter_of(**fields)`: the card of a text model of 64×32 pixels."""
    painter = {
        "name": "painter",
        "width": 64,
        "height": 32,
        "channels": 3,
        "labels": [],
        "prompts": True,
        "size_multiple": 16,
        "max_pixels": 4096,
        "max_clip_skip": 2,
        "default": {"sampler": "ddim", "steps": 20, "guidance_scale": 7.5},
    }
    return lambda **fields: _card(**{**painter, **fields})


@pytest.fixture(scope="session")
def request_of() -> Callable[..., SamplingRequest]:
    """`request_of(**fields)`: a resolved request for `shoes`."""
    return _request


@pytest.fixture
def fake_worker(client: redis.Redis) -> FakeWorker:
    """A fake worker on an empty Valkey; it has not reported yet."""
    return FakeWorker(client)


@pytest.fixture(autouse=True)
def long_redis_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a request wait for Redis longer than a busy machine makes it wait.

    `tests/faults/test_redis_outage.py` checks the real timeouts, on real processes.
    """
    monkeypatch.setattr("denoised.app.http.middleware.request_context.REDIS_SECONDS", 30.0)
    monkeypatch.setattr("denoised.app.services.COMMAND_SECONDS", 30.0)


@pytest.fixture
def make_client(valkey_url: str, client: redis.Redis) -> Iterator[Callable[..., TestClient]]:
    """`make_client(keys=…, **settings)`: a client of a new app; it sends the first of the keys."""
    with ExitStack() as stack:

        def make_client(
            keys: tuple[str, ...] = (), redis_url: str = valkey_url, ring: KeyRing | None = None, **settings: Any
        ) -> TestClient:
            app = _app(ApiSettings(redis_url=redis_url, api_keys=ring or KeyRing.from_keys(keys), **settings))
            headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
            browser = TestClient(app, base_url="http://127.0.0.1:8000", headers=headers)
            stack.callback(app.state.services.store.client.close)
            return stack.enter_context(browser)

        yield make_client


def _listening(
    stack: ExitStack,
    redis_url: str,
    keys: tuple[str, ...] = (),
    ring: KeyRing | None = None,
    limit: ConnectionLimit | None = None,
    timeout_graceful_shutdown: int = 2,
    **settings: Any,
) -> str:
    """The URL of an app that runs in a thread of this process until the stack is closed.

    limit: of connections; timeout_graceful_shutdown: seconds, of uvicorn.
    """
    app = _app(ApiSettings(redis_url=redis_url, api_keys=ring or KeyRing.from_keys(keys), **settings))
    protocols: dict[str, Any] = {"http": partial(HttpProtocol, limit=limit), "ws": SocketProtocol}
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=timeout_graceful_shutdown, **protocols)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    stack.callback(app.state.services.store.client.close)
    stack.callback(thread.join)
    stack.callback(setattr, server, "should_exit", True)
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    listening = server.servers[0].sockets[0]
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def start_server(valkey_url: str, client: redis.Redis) -> Iterator[Callable[..., str]]:
    """`start_server(keys=…, limit=…, **settings)`: the URL of a new app on a TCP socket."""
    with ExitStack() as stack:
        yield lambda **settings: _listening(stack, valkey_url, **settings)


@pytest.fixture
def run_server(valkey_url: str) -> Callable[..., AbstractContextManager[str]]:
    """`run_server(**settings)`: a context in which a new app runs; its value is the URL."""

    @contextmanager
    def run_server(**settings: Any) -> Iterator[str]:
        with ExitStack() as stack:
            yield _listening(stack, valkey_url, **settings)

    return run_server


@pytest.fixture(scope="session")
def _shared_server(valkey_url: str) -> Iterator[str]:
    with ExitStack() as stack:
        yield _listening(stack, valkey_url)


@pytest.fixture
def url(_shared_server: str, fake_worker: FakeWorker) -> str:
    """The URL of an app that tests share: without keys, with an empty Redis and a worker that serves `shoes`."""
    fake_worker.serve(speed=1000.0)
    return _shared_server


@pytest.fixture
def api(make_client: Callable[..., TestClient], fake_worker: FakeWorker) -> TestClient:
    """A client of an app without keys; a worker serves `shoes`."""
    fake_worker.serve()
    return make_client()


@pytest.fixture
def services(api: TestClient) -> Services:
    """The services of the app behind `api`."""
    services: Services = api.app.state.services  # type: ignore[attr-defined]
    return services


@pytest.fixture
def missing_redis_url(tmp_path: Path) -> str:
    """The URL of a Redis that does not exist."""
    return f"unix://{tmp_path}/missing.sock"


@pytest.fixture
def estimate() -> QueueEstimate:
    return QueueEstimate(0, None)
