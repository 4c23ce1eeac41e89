"""The Python client, against the real API on a socket. The fixture `fake_worker` plays the worker."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import pytest
from PIL import Image

from denoised import (
    AsyncClient,
    Client,
    ConnectionFailed,
    Event,
    FleetStatus,
    Frame,
    ImageFinished,
    InvalidResponse,
    Job,
    JobCanceled,
    JobFailed,
    JobFinished,
    JobImage,
    JobProgress,
    JobQueued,
    JobStarted,
    JobTiming,
    KeyUsage,
    QueueStatus,
    Quota,
    RequestFields,
    RequestRejected,
    ServerBusy,
    ServiceError,
    VerificationResult,
    WorkerStatus,
)
from denoised.app.http import schemas
from denoised.app.http.requests.request_body import GenerateRequest
from denoised.app.routes.usage import QuotaObject, UsageObject
from denoised.app.routes.workers import FleetObject, QueueObject, WorkerObject
from denoised.client import exchange, retries
from denoised.client.events import parse_event
from denoised.client.job import require_success
from denoised.jobs.store.update import final_update

Listen = Callable[..., str]


def png(shade: int = 200) -> bytes:
    out = io.BytesIO()
    Image.new("L", (28, 28), shade).save(out, "png")
    return out.getvalue()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.02)


@pytest.fixture
def working(fake_worker: Any) -> Iterator[None]:
    """A simulated worker: every job, of one image each, succeeds."""
    done, stop = set(), threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            for record in fake_worker.store.listing.page("", 100):
                if record.id not in done and not record.terminal:
                    done.add(record.id)
                    attempt = fake_worker.start(record.id)
                    fake_worker.progress(record.id, attempt, 1)
                    fake_worker.finish(record.id, attempt, data=png())

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


class Cutter:
    """A proxy that cuts the answers on its first connections after a number of bytes."""

    def __init__(self, url: str, cuts: list[int], port: int = 0) -> None:
        self._to = int(url.rpartition(":")[2])
        self._cuts = cuts
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # A listener stays open while another thread waits in accept().
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                self._ends += [client, server]
                allowed = self._cuts.pop(0) if self._cuts else None
                threading.Thread(target=self._pass, args=(client, server, None), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, allowed), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, allowed: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if allowed is not None:
                    data, allowed = data[:allowed], allowed - len(data)
                    if allowed <= 0:
                        target.sendall(data)
                        break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cut(url: str) -> Iterator[Callable[..., Cutter]]:
    cutters = []

    def cut(*cuts: int, port: int = 0) -> Cutter:
        cutters.append(Cutter(url, list(cuts), port))
        return cutters[-1]

    yield cut
    for cutter in cutters:
        cutter.close()


def test_the_keywords_are_the_fields_of_a_request() -> None:
    assert set(get_type_hints(RequestFields)) == set(GenerateRequest.model_fields)
    for method in (Client.generate, Client.submit, Client.stream, AsyncClient.generate):
        assert all(f"        {name}: " in str(method.__doc__) for name in GenerateRequest.model_fields)


@pytest.mark.parametrize(
    ("ours", "theirs", "left_out"),
    [
        (Job, schemas.JobObject, {"progress", "links"}),
        (JobImage, schemas.ImageObject, set()),
        (JobTiming, schemas.Timing, set()),
        (VerificationResult, schemas.Verification, {"numerics"}),
        (FleetStatus, FleetObject, set()),
        (QueueStatus, QueueObject, set()),
        (WorkerStatus, WorkerObject, {"queue_seconds"}),
        (KeyUsage, UsageObject, set()),
        (Quota, QuotaObject, set()),
    ],
)
def test_results_have_the_members_that_the_api_documents(ours: Any, theirs: Any, left_out: set[str]) -> None:
    members = set(get_type_hints(ours)) - {"raw", "step", "run_steps"}
    assert members == set(theirs.model_fields) - left_out


@pytest.mark.usefixtures("working")
def test_generate_returns_pillow_images(url: str) -> None:
    with Client(url) as client:
        (picture,) = client.generate(label="sneaker", seed=7, eta=0.5)
        (job,) = client.jobs()
    assert (picture.size, picture.getpixel((3, 3))) == ((28, 28), 200)
    assert (job.label, job.seed, job.eta, job.status) == ("sneaker", 7, 0.5, "succeeded")


@pytest.mark.usefixtures("working")
def test_a_stream_yields_all_events_in_order(url: str) -> None:
    with Client(url) as client:
        events = list(client.stream("sneaker"))
        job = client.job(events[0].job)
    assert [type(event) for event in events] == [JobQueued, JobStarted, JobProgress, ImageFinished, JobFinished]
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert isinstance(events[-1], JobFinished)
    assert events[-1].result == job
    assert job.is_finished


def test_frames_contain_images(url: str, fake_worker: Any) -> None:
    with Client(url) as client:
        job = client.submit(preview_every=1)
        attempt = fake_worker.start(job.id)
        frame = {"type": "frame", "image": 0, "step": 1, "steps": 20, "t": 500.0, "sigma": 0.7, "kind": "x0"}
        data = {"media_type": "image/png", "data": base64.b64encode(png(9)).decode()}
        fake_worker.progress(job.id, attempt, 1, frame | data)
        fake_worker.finish(job.id, attempt)
        (event,) = [event for event in client.events(job.id) if isinstance(event, Frame)]
    assert (event.kind, event.step, event.picture.getpixel((0, 0))) == ("x0", 1, 9)


def test_an_unknown_type_of_event_is_a_plain_event() -> None:
    event = parse_event({"seq": 4, "type": "rested", "job": "a", "attempt": 1, "minutes": 3})
    assert (type(event), event.seq, event.raw["minutes"]) == (Event, 4, 3)


def test_a_failed_or_canceled_job_is_an_exception(url: str, fake_worker: Any) -> None:
    with Client(url) as client:
        jobs = [client.submit() for _ in range(2)]
        for job, status in zip(jobs, ("failed", "canceled"), strict=True):
            record = fake_worker.store.job(job.id)
            fake_worker.store.write(final_update(record, status, {"code": "nan_output", "message": "not a number"}))
        with pytest.raises(JobFailed, match="not a number") as failed:
            require_success(client.wait(jobs[0].id))
        assert (failed.value.code, failed.value.job) == ("nan_output", jobs[0].id)
        with pytest.raises(JobCanceled):
            require_success(client.wait(jobs[1].id))


def test_a_rejected_request_names_the_fields(url: str) -> None:
    with Client(url) as client, pytest.raises(RequestRejected) as refused:
        client.submit(label="boot", steps=0)
    assert refused.value.status == 422
    assert [field for field, _ in refused.value.errors] == ["steps"]
    with Client(url) as client, pytest.raises(ServiceError, match="JSON"):
        client.submit(eta=float("nan"))


def test_jobs_are_fetched_page_by_page(url: str, fake_worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PAGE_SIZE", 4)
    made = [fake_worker.create() for _ in range(10)]
    with Client(url) as client:
        assert [job.id for job in client.jobs()] == made[::-1]
        assert [job.id for job in client.jobs(limit=6)] == made[::-1][:6]
        assert list(client.jobs(limit=0)) == []
        for k in (8, 3):
            client.cancel(made[k])
        assert [job.id for job in client.jobs(status="canceled")] == [made[8], made[3]]
        assert [job.id for job in client.jobs(limit=1, status="canceled")] == [made[8]]
        assert [job.id for job in client.jobs(limit=3, status="queued")] == [made[9], made[7], made[6]]


def test_a_call_is_retried_after_the_servers_retry_after(start_server: Listen, fake_worker: Any) -> None:
    fake_worker.serve(speed=1e6)
    url, waits = start_server(max_queue=1), []

    def make_room(seconds: float, why: ServiceError) -> None:
        waits.append((seconds, why.status))
        with Client(url) as other:
            other.cancel(first.id)

    with Client(url, on_wait=make_room) as client:
        first = client.submit()
        assert client.submit().status == "queued"
    assert waits == [(1.0, 429)]


def test_a_retry_after_beyond_retry_for_is_an_exception_at_once(start_server: Listen, fake_worker: Any) -> None:
    fake_worker.serve()
    waits: list[Any] = []
    with Client(start_server(max_queue=1), retry_for=5.0, on_wait=lambda *given: waits.append(given)) as client:
        client.submit()
        with pytest.raises(ServerBusy) as busy:
            client.submit()
    assert (busy.value.status, busy.value.retry_after) == (429, 10.0)
    assert waits == []


def test_a_model_without_a_worker_is_busy(start_server: Listen) -> None:
    with Client(start_server(), retry_for=0.0) as client, pytest.raises(ServerBusy, match="no worker") as busy:
        client.submit()
    assert busy.value.status == 503


def test_a_lost_answer_creates_no_second_job(cut: Callable[..., Cutter]) -> None:
    with Client(cut(0).url) as client:
        job = client.submit(label="sneaker")
        assert [known.id for known in client.jobs()] == [job.id]


def test_a_broken_stream_resumes_where_it_broke(cut: Callable[..., Cutter], url: str, fake_worker: Any) -> None:
    with Client(url) as client:
        job = client.submit()
    attempt = fake_worker.start(job.id)
    for number in range(1, 21):
        fake_worker.progress(job.id, attempt, number)
    fake_worker.finish(job.id, attempt)
    with Client(cut(400, 1200, 2000).url) as client:
        events = list(client.events(job.id))
    assert [event.seq for event in events] == list(range(1, 25))
    with Client(url) as client:
        assert [event.seq for event in client.events(job.id, after=20)] == [21, 22, 23, 24]
        assert list(client.events(job.id, after=24)) == []


def test_a_server_that_never_answered_is_not_retried() -> None:
    waits: list[Any] = []
    with (
        Client("http://127.0.0.1:9", on_wait=lambda *given: waits.append(given)) as client,
        pytest.raises(ConnectionFailed, match="denoised serve") as gone,
    ):
        client.models()
    assert gone.value.status is None
    assert waits == []


def test_a_restarting_server_is_retried(cut: Callable[..., Cutter], url: str) -> None:
    proxy = cut()
    waits: list[float] = []
    with Client(proxy.url, on_wait=lambda seconds, why: waits.append(seconds)) as client:
        assert [model.name for model in client.models()] == ["shoes"]
        proxy.close()
        reopening = threading.Timer(0.2, lambda: cut(port=proxy.port))
        reopening.start()
        assert [model.name for model in client.models()] == ["shoes"]
        reopening.join()
    assert waits[:3] == [0.02, 0.04, 0.08]


def test_the_answer_of_another_server_is_an_invalid_response(tmp_path: Any) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"models": "all of them"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            for call in (client.models, lambda: client.job("abc"), lambda: list(client.jobs()), client.workers):
                with pytest.raises(InvalidResponse, match="is it denoised"):
                    call()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("job_id", ["", "../tickets", "a/b", "a?b", "ä", "a b"])
def test_an_invalid_job_id_sends_no_request(job_id: str) -> None:
    with Client("http://127.0.0.1:9") as client:
        for call in (client.job, client.cancel, client.animation):
            with pytest.raises(RequestRejected, match="not found"):
                call(job_id)


@pytest.mark.parametrize("place", ["http://192.0.2.1/x.png", "//192.0.2.1/x.png", "x.png"])
def test_the_key_is_never_sent_to_another_server(place: str) -> None:
    with Client("http://127.0.0.1:9", key="secret") as client, pytest.raises(InvalidResponse):
        client.image(place)


def test_a_valid_key_is_accepted_and_a_wrong_one_rejected(
    start_server: Listen, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_worker.serve()
    url = start_server(keys=("secret",))
    with Client(url, key="secret") as client:
        assert client.models()
    with Client(url, key="wrong") as client, pytest.raises(RequestRejected) as refused:
        client.models()
    assert refused.value.status == 401
    with pytest.raises(ServiceError) as broken:
        Client(url, key="sec\nret")
    assert "sec" not in str(broken.value)
    monkeypatch.setenv("DENOISED_URL", url)
    monkeypatch.setenv("DENOISED_API_KEY", "secret")
    with Client() as client:
        assert client.models()


@pytest.mark.parametrize("url", ["http://[", "ftp://127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:port"])
def test_an_invalid_url_is_a_one_line_error(url: str) -> None:
    with pytest.raises(ServiceError) as error, Client(url) as client:
        client.models()
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("working")
def test_the_asynchronous_client_returns_the_same(url: str) -> None:
    async def scenario() -> None:
        async with AsyncClient(url) as client:
            (one,), (two,) = await asyncio.gather(client.generate("sneaker"), client.generate("ankle boot"))
            assert one.getpixel((0, 0)) == two.getpixel((0, 0)) == 200
            events = [event async for event in client.stream("sneaker")]
            assert [type(event) for event in events] == [JobQueued, JobStarted, JobProgress, ImageFinished, JobFinished]
            assert len([job async for job in client.jobs()]) == 3
            assert len([job async for job in client.jobs(limit=2)]) == 2
            assert [model.name for model in await client.models()] == ["shoes"]
            assert (await client.workers()).workers[0].name == "worker-1"
            assert (await client.usage()).quotas[0].name == "jobs"
            assert [usage.key for usage in await client.usage_of_all_keys()] == [""]

    asyncio.run(scenario())


def test_canceling_a_task_cancels_its_job(url: str) -> None:
    async def scenario() -> str:
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.generate("sneaker"))
            while not (jobs := [job async for job in client.jobs()]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return (await client.job(jobs[0].id)).status

    assert asyncio.run(scenario()) == "canceled"


def test_an_asynchronous_stream_resumes_and_a_lost_answer_creates_no_second_job(
    cut: Callable[..., Cutter], fake_worker: Any
) -> None:
    async def scenario() -> None:
        async with AsyncClient(cut(0, 10**6, 600).url) as client:
            job = await client.submit("sneaker")
            assert [known.id async for known in client.jobs()] == [job.id]
            attempt = fake_worker.start(job.id)
            fake_worker.progress(job.id, attempt, 1)
            fake_worker.finish(job.id, attempt)
            assert [event.seq async for event in client.events(job.id)] == [1, 2, 3, 4, 5]

    asyncio.run(scenario())
