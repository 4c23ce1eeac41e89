"""Webhooks from the request to the receiver, a real socket on loopback. The fixture `fake_worker` plays the worker."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient

from denoised import verify_webhook
from denoised.app.webhooks import sender
from denoised.app.webhooks.webhook_settings import WebhookSettings
from denoised.jobs.store.redis_keys import job as job_key
from denoised.jobs.store.redis_keys import webhooks as queue_key
from denoised.jobs.store.store import Store
from denoised.jobs.store.update import JobUpdate, final_update
from tests.webhook_receiver import SECRET, Receiver, until

KEYS = ("alice-key-alice-key-alice", "bob-key-bob-key-bob-key")


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    """`receive(…)`: a new receiver."""
    with ExitStack() as stack:

        def receive(**options: Any) -> Receiver:
            receiver = Receiver(**options)
            stack.callback(receiver.close)
            return receiver

        yield receive


@pytest.fixture
def open_api(make_client: Callable[..., TestClient], fake_worker: Any) -> Callable[..., TestClient]:
    """`open_api(receiver, …)`: a client of an app that may send webhooks to these receivers."""

    def open_api(*receivers: Receiver, timeout: float = 10.0, first_delay: float = 0.05, **options: Any) -> TestClient:
        fake_worker.serve()
        origins = frozenset(receiver.origin for receiver in receivers)
        settings = WebhookSettings(origins, origins, (SECRET,), timeout, first_delay)
        return make_client(webhooks=settings, **options)

    return open_api


def post(api: TestClient, receiver: Receiver, path: str = "/hook?token=1", **fields: Any) -> str:
    response = api.post("/generate", json={"webhook": receiver.origin + path, "seed": 3, **fields})
    assert response.status_code == 202, response.text
    job: str = response.json()["id"]
    return job


def delivery(api: TestClient, job: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/jobs/{job}/webhook").json()
    return found


def end(store: Store, job: str, status: str, worker: Any) -> None:
    """Let a queued job end."""
    if status == "succeeded":
        worker.finish(job, worker.start(job))
        return
    record = store.job(job)
    assert record is not None
    assert store.write(final_update(record, status, {"code": "timeout", "message": "x"}))  # type: ignore[arg-type]


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_every_end_of_a_job_is_posted_to_its_webhook(
    status: str, open_api: Any, receive: Any, fake_worker: Any, request: pytest.FixtureRequest
) -> None:
    receiver = receive()
    api = open_api(receiver)
    job = post(api, receiver)
    assert delivery(api, job) == {
        "job": job,
        "url": f"{receiver.origin}/hook?token=1",
        "status": "waiting",
        "attempts": 0,
        "last_attempt_at": None,
        "last_response": None,
        "error": None,
        "next_attempt_at": None,
    }
    if status == "canceled":
        api.delete(f"/jobs/{job}")
    else:
        end(fake_worker.store, job, status, fake_worker)
    until(lambda: delivery(api, job)["status"] == "delivered", "the delivery")
    (received,) = receiver.received
    assert received.path == "/hook?token=1"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["webhook-id"] == f"msg_{job}"
    (secret,) = api.get("/webhooks/secrets").json()["secrets"]
    assert verify_webhook(received.body, received.headers, secret).status == status
    assert json.loads(received.body) == api.get(f"/jobs/{job}").json()
    found = delivery(api, job)
    assert (found["attempts"], found["last_response"], found["error"], found["next_attempt_at"]) == (1, 200, None, None)


def test_a_worker_that_is_lost_too_often_ends_a_job_with_a_webhook(
    open_api: Any, receive: Any, fake_worker: Any
) -> None:
    receiver = receive()
    api = open_api(receiver, max_attempts=1)
    job = post(api, receiver)
    fake_worker.start(job)
    assert fake_worker.store.attempts.start(job, "worker-2", "fake") is None  # the first was lost
    until(lambda: receiver.received, "the webhook")
    assert json.loads(receiver.received[0].body)["error"]["code"] == "worker_lost"


def test_a_receiver_that_fails_is_tried_again_with_the_same_id_and_growing_delays(
    open_api: Any, receive: Any, fake_worker: Any
) -> None:
    receiver = receive(statuses=[500, 302, 404], headers={"Location": "/elsewhere"})
    api = open_api(receiver)
    job = post(api, receiver)
    fake_worker.finish(job, fake_worker.start(job))
    until(lambda: delivery(api, job)["status"] == "delivered", "the delivery")
    assert [each.path for each in receiver.received] == ["/hook?token=1"] * 4  # no redirect was followed
    assert {each.headers["webhook-id"] for each in receiver.received} == {f"msg_{job}"}
    assert {each.body for each in receiver.received} == {receiver.received[0].body}
    times = [each.at for each in receiver.received]
    delays = [later - earlier for earlier, later in pairwise(times)]
    assert all(delay > least for delay, least in zip(delays, [0.04, 0.16, 0.64], strict=True)), delays
    assert delivery(api, job)["attempts"] == 4


def test_a_pending_delivery_says_why_and_when_it_goes_on(open_api: Any, receive: Any, fake_worker: Any) -> None:
    receiver = receive(answer=503, headers={"Retry-After": "1000"})
    api = open_api(receiver)
    job = post(api, receiver)
    fake_worker.finish(job, fake_worker.start(job))
    until(lambda: delivery(api, job)["error"], "the first attempt")
    found = delivery(api, job)
    assert (found["status"], found["attempts"], found["last_response"]) == ("pending", 1, 503)
    assert found["error"] == "the receiver answered 503"
    assert found["next_attempt_at"] - found["last_attempt_at"] == pytest.approx(1000, abs=5)
    text = api.get("/metrics").text
    assert "denoised_webhooks_pending 1.0" in text
    assert 'denoised_webhook_attempts_total{outcome="retried"} 1.0' in text


def test_after_the_last_attempt_the_delivery_has_failed(
    open_api: Any, receive: Any, fake_worker: Any, monkeypatch: pytest.MonkeyPatch, client: redis.Redis
) -> None:
    monkeypatch.setattr(sender, "MAX_ATTEMPTS", 2)
    receiver = receive(answer=500)
    api = open_api(receiver)
    job = post(api, receiver)
    fake_worker.finish(job, fake_worker.start(job))
    until(lambda: delivery(api, job)["status"] == "failed", "the last attempt")
    found = delivery(api, job)
    assert (found["attempts"], found["next_attempt_at"]) == (2, None)
    assert found["error"] == "the receiver answered 500; this was attempt 2 of 2"
    assert client.zcard(queue_key(receiver.origin)) == 0


def test_a_receiver_that_is_gone_gets_no_further_attempt(open_api: Any, receive: Any, fake_worker: Any) -> None:
    receiver = receive(answer=410)
    api = open_api(receiver)
    job = post(api, receiver)
    fake_worker.finish(job, fake_worker.start(job))
    until(lambda: delivery(api, job)["status"] == "failed", "the attempt")
    assert len(receiver.received) == 1


def test_the_delivery_of_a_front_end_that_was_lost_is_repeated_by_another(
    open_api: Any, receive: Any, fake_worker: Any, client: redis.Redis
) -> None:
    receiver = receive()
    store, record_id = fake_worker.store, fake_worker.create(webhook=f"{receiver.origin}/a")
    fake_worker.finish(record_id, fake_worker.start(record_id))
    claimed, _ = store.webhooks.claim({receiver.origin: 4}, 1.0)
    assert [(each.job, each.attempt) for each in claimed] == [(record_id, 1)]
    assert store.webhooks.claim({receiver.origin: 4}, 1.0) == ([], False)  # it is taken
    api = open_api(receiver)  # the one that claimed it sends nothing
    until(lambda: delivery(api, record_id)["status"] == "delivered", "the second front end")
    assert receiver.received[0].headers["webhook-id"] == f"msg_{record_id}"
    assert not store.webhooks.settle(claimed[0], "failed", 0, "late", None)  # and changes nothing any more
    assert delivery(api, record_id)["status"] == "delivered"


def test_a_webhook_of_a_job_that_has_expired_is_dropped(
    open_api: Any, receive: Any, fake_worker: Any, client: redis.Redis
) -> None:
    receiver = receive(answer=500)
    job = fake_worker.create(webhook=f"{receiver.origin}/a")
    fake_worker.finish(job, fake_worker.start(job))
    assert 0 < client.ttl(queue_key(receiver.origin)) <= fake_worker.store.result_ttl
    client.delete(job_key(job))
    assert fake_worker.store.webhooks.claim({receiver.origin: 4}, 1.0) == ([], True)
    assert client.zcard(queue_key(receiver.origin)) == 0


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "no answer within 0.5 s"),
        (b"HTTP/1.1 200 OK\r\nX: ", "no answer within 0.5 s"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "the answer is not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 9000, "the head of the answer exceeds 16384 bytes"),
    ],
)
def test_a_receiver_holds_an_attempt_no_longer_than_the_limit(
    answer: bytes, error: str, open_api: Any, fake_worker: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        class Slow:
            origin = f"http://127.0.0.1:{server.getsockname()[1]}"

        api = open_api(Slow, timeout=0.5, first_delay=60.0)
        job = post(api, Slow)  # type: ignore[arg-type]
        fake_worker.finish(job, fake_worker.start(job))
        started = time.monotonic()
        connection, _ = server.accept()
        with connection:
            connection.sendall(answer)
            until(lambda: delivery(api, job)["error"], "the attempt")
            assert delivery(api, job)["error"] == error
            assert time.monotonic() - started < 5


def test_an_answer_that_trickles_in_is_cut_off(open_api: Any, fake_worker: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        class Slow:
            origin = f"http://127.0.0.1:{server.getsockname()[1]}"

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                for byte in b"HTTP/1.1 200 OK\r\n" + b"X" * 100:
                    try:
                        connection.sendall(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(0.1)

        threading.Thread(target=trickle, daemon=True).start()
        api = open_api(Slow, timeout=1.0, first_delay=60.0)
        job = post(api, Slow)  # type: ignore[arg-type]
        fake_worker.finish(job, fake_worker.start(job))
        until(lambda: delivery(api, job)["error"], "the attempt")
        assert delivery(api, job)["error"] == "no answer within 1 s"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that it has signed itself, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program")
    file = tmp_path_factory.mktemp("certificate") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{file}.key", "-out", f"{file}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(Path(f"{file}.key").read_text() + Path(f"{file}.crt").read_text())
    return file


@pytest.mark.parametrize("trusted", [True, False])
def test_a_receiver_gets_webhooks_over_tls_if_its_certificate_is_trusted(
    trusted: bool, open_api: Any, receive: Any, fake_worker: Any, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    receiver = receive(certificate=certificate)
    api = open_api(receiver, first_delay=60.0)
    job = post(api, receiver)
    fake_worker.finish(job, fake_worker.start(job))
    if trusted:
        until(lambda: delivery(api, job)["status"] == "delivered", "the delivery")
    else:
        until(lambda: delivery(api, job)["error"], "the attempt")
        assert delivery(api, job)["error"].startswith("the certificate is not valid: self")
        assert receiver.received == []


def test_a_receiver_without_tls_gets_nothing_of_an_https_webhook(make_client: Any, fake_worker: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        origin = f"https://127.0.0.1:{server.getsockname()[1]}"
        settings = WebhookSettings(frozenset([origin]), frozenset([origin]), (SECRET,), 1.0, 60.0)
        fake_worker.serve()
        api = make_client(webhooks=settings)
        job = api.post("/generate", json={"webhook": f"{origin}/a"}).json()["id"]
        fake_worker.finish(job, fake_worker.start(job))
        connection, _ = server.accept()
        with connection:
            hello = connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            until(lambda: delivery(api, job)["error"], "the attempt")
        assert hello[0] == 22  # a TLS handshake
        assert job.encode() not in hello
        assert delivery(api, job)["error"].startswith("TLS failed")


def test_a_receiver_with_a_private_address_gets_nothing_unless_it_is_allowed_by_name(
    make_client: Any, fake_worker: Any, receive: Any
) -> None:
    receiver = receive()
    fake_worker.serve()
    settings = WebhookSettings(frozenset([receiver.origin]), frozenset(), (SECRET,), 1.0, 60.0)
    api = make_client(webhooks=settings)
    job = post(api, receiver)
    fake_worker.finish(job, fake_worker.start(job))
    until(lambda: delivery(api, job)["error"], "the attempt")
    assert delivery(api, job)["error"] == "the host has a private address (allowed: public addresses)"
    assert receiver.received == []


REFUSED = [
    ("https://127.0.0.1/a", "is not allowed"),
    ("http://localhost:{port}/a", "is not allowed"),
    ("http://127.0.0.1:1/a", "is not allowed"),
    ("http://127.1:{port}/a", "is not allowed"),
    ("http://127.0.0.1.:{port}/a", "is not allowed"),
    ("http://127.0.0.1:{port}@evil.example/", "user name"),
    ("file:///etc/passwd", "not an https URL"),
    ("", "at least 1"),
    ("x" * 2001, "2000"),
]


@pytest.mark.parametrize("task", ["generate", "noise", "score", "likelihood"])
def test_a_webhook_that_is_not_allowed_is_refused_by_name(task: str, open_api: Any, receive: Any) -> None:
    receiver = receive()
    api = open_api(receiver)
    for url, message in REFUSED:
        given = url.replace("{port}", receiver.origin.rpartition(":")[2])
        response = api.post(f"/{task}", json={"webhook": given} | ({} if task == "generate" else {"image": "x"}))
        assert response.status_code == 422
        (error,) = response.json()["errors"]
        assert (error["field"], message in error["message"]) == ("webhook", True), error
        assert receiver.origin not in error["message"].replace(given[:40], "")  # other callers may use it


def test_without_hosts_every_webhook_is_refused(api: TestClient) -> None:
    error = api.post("/generate", json={"webhook": "https://hooks.example.com/"}).json()["errors"][0]
    assert error["message"].endswith("(allowed: none; the operator of this server allows no host)")
    assert api.get("/webhooks/secrets").json() == {"secrets": []}
    assert api.get("/webhooks").json() == {"deliveries": [], "next_cursor": None}


def test_one_idempotency_key_with_another_webhook_is_another_request(open_api: Any, receive: Any) -> None:
    receiver = receive()
    api = open_api(receiver)
    for path, status in (("/a", 202), ("/a", 202), ("/b", 422)):
        body = {"webhook": receiver.origin + path, "seed": 1}
        assert api.post("/generate", json=body, headers={"Idempotency-Key": "k"}).status_code == status


def test_a_key_sees_its_own_deliveries_and_secret_alone(open_api: Any, receive: Any, fake_worker: Any) -> None:
    receiver = receive()
    api = open_api(receiver, keys=KEYS)
    bob = {"Authorization": f"Bearer {KEYS[1]}"}
    job = post(api, receiver)
    api.post("/generate", json={})  # a job without one
    assert [each["job"] for each in api.get("/webhooks").json()["deliveries"]] == [job]
    assert api.get("/webhooks", headers=bob).json()["deliveries"] == []
    assert api.get(f"/jobs/{job}/webhook", headers=bob).status_code == 404
    assert api.get("/webhooks", headers={"Authorization": ""}).status_code == 401
    secret, other = (api.get("/webhooks/secrets", headers=each).json()["secrets"] for each in ({}, bob))
    assert secret != other
    fake_worker.finish(job, fake_worker.start(job))
    until(lambda: receiver.received, "the webhook")
    assert verify_webhook(receiver.received[0].body, receiver.received[0].headers, secret).id == job


def test_deliveries_are_listed_in_pages(open_api: Any, receive: Any) -> None:
    receiver = receive()
    api = open_api(receiver)
    jobs = [post(api, receiver) for _ in range(3)]
    first = api.get("/webhooks", params={"limit": 2}).json()
    assert [each["job"] for each in first["deliveries"]] == jobs[:0:-1]
    last = api.get("/webhooks", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert ([each["job"] for each in last["deliveries"]], last["next_cursor"]) == (jobs[:1], None)


def test_a_job_without_a_webhook_has_no_delivery(api: TestClient, fake_worker: Any) -> None:
    response = api.get(f"/jobs/{fake_worker.create()}/webhook")
    assert response.status_code == 404
    assert "has no webhook" in response.json()["detail"]


def test_a_thousand_webhooks_to_a_receiver_that_hangs_hold_up_neither_requests_nor_other_receivers(
    open_api: Any, receive: Any, fake_worker: Any
) -> None:
    slow, good = receive(), receive()
    slow.hold.clear()
    api = open_api(slow, good)
    ended = [fake_worker.create(webhook=f"{slow.origin}/a") for _ in range(1000)]
    results = fake_worker.store.write_all([_end(job) for job in ended])
    assert all(results)
    until(lambda: slow.concurrent == sender.PER_ORIGIN, "attempts that hang")
    job = post(api, good)
    fake_worker.finish(job, fake_worker.start(job))
    started = time.monotonic()
    until(lambda: good.received, "the other receiver")
    assert time.monotonic() - started < 5
    started = time.monotonic()
    for _ in range(20):
        assert api.get(f"/jobs/{job}").status_code == 200
    assert time.monotonic() - started < 5
    slow.hold.set()
    until(lambda: len(slow.received) == 1000, "all webhooks", 60)
    assert slow.most_concurrent == sender.PER_ORIGIN
    assert len({each.headers["webhook-id"] for each in slow.received}) == 1000


def _end(job: str) -> JobUpdate:
    update = JobUpdate(job, image_count=1)
    update.end("canceled")
    return update


def test_an_attempt_leaves_a_log_line_that_has_no_token(
    open_api: Any, receive: Any, fake_worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = receive()
    api = open_api(receiver)
    with caplog.at_level(logging.INFO, "denoised.api"):
        job = post(api, receiver)
        fake_worker.finish(job, fake_worker.start(job))
        until(lambda: any("webhook delivered" in record.message for record in caplog.records), "the log line")
    (line,) = [record for record in caplog.records if "webhook delivered" in record.message]
    assert (line.job, line.origin, line.status, line.attempt) == (job, receiver.origin, 200, 1)  # type: ignore[attr-defined]
    assert all("token=1" not in str(vars(record)) for record in caplog.records)


def test_webhooks_go_on_when_redis_answers_again(
    open_api: Any, receive: Any, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.1)
    receiver = receive()
    api = open_api(receiver)
    queue = api.app.state.services.store.webhooks  # type: ignore[attr-defined]
    real = queue.claim
    failures = iter([redis.exceptions.ConnectionError("away")] * 2)

    def claim(*args: Any) -> Any:
        from denoised.jobs.errors import StoreUnavailable

        if (error := next(failures, None)) is not None:
            raise StoreUnavailable("away") from error
        return real(*args)

    monkeypatch.setattr(queue, "claim", claim)
    job = post(api, receiver)
    fake_worker.finish(job, fake_worker.start(job))
    until(lambda: receiver.received, "the webhook")


def test_the_openapi_document_describes_the_webhook(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    sent = document["webhooks"]["job-ended"]["post"]
    assert sent["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobObject"}
    assert {each["name"] for each in sent["parameters"]} == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    assert {"/webhooks", "/webhooks/secrets", "/jobs/{job_id}/webhook"} <= document["paths"].keys()
    assert "webhook" in document["components"]["schemas"]["GenerateRequest"]["properties"]
