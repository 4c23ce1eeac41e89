"""Faults of other services' APIs; each test names the public report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from starlette.testclient import TestClient, WebSocketDenialResponse

from denoised.app.http import event_stream
from denoised.app.routes import events

MakeClient = Callable[..., TestClient]
LOCAL = "ws://127.0.0.1:8000"

NAMES = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "shoes\x00",
    "shoes\\..\\..\\secret",
    "shoes/../../secret",
    "shoes-evil",
    ".",
    "~root",
    "file:///etc/passwd",
    "rq:queue:shoes",
    "shoes\n",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_name_is_never_used_as_a_path(name: str, api: TestClient, client: redis.Redis) -> None:
    """InvokeAI#133, ComfyUI#12285. No queue of that name is created, either."""
    before = set(client.scan_iter("rq:*"))
    answer = api.post("/generate", json={"model": name})
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == ["model"]
    assert "root:" not in answer.text
    assert set(client.scan_iter("rq:*")) == before


def test_a_model_name_may_contain_two_dots(make_client: MakeClient, fake_worker: Any, card_of: Any) -> None:
    """ComfyUI#13742: a..b was refused."""
    fake_worker.serve(card_of(name="a..b"))
    assert make_client().post("/generate", json={"model": "a..b"}).status_code == 202


def test_no_request_reads_a_file_of_the_server(api: TestClient, fake_worker: Any, tmp_path: Path) -> None:
    """A1111#12822: `/file=` and similar paths."""
    secret = tmp_path / "secret"
    secret.write_text("the-secret")
    fake_worker.succeeded(job_id="0" * 32)
    job = f"/jobs/{'0' * 32}"
    for path in (f"/file={secret}", f"/playground/../../..{secret}", f"/jobs/{secret}", f"{job}/images/{secret}"):
        answer = api.get(path)
        assert answer.status_code in (404, 405, 422)
        assert "the-secret" not in answer.text


def test_every_route_and_socket_hides_the_jobs_of_other_keys(make_client: MakeClient, fake_worker: Any) -> None:
    """Every path of the OpenAPI document that has a job id."""
    fake_worker.serve()
    api = make_client(keys=("one", "two"))
    job_id = api.post("/generate", json={"preview_every": 1}).json()["id"]
    fake_worker.finish(job_id, fake_worker.start(job_id))
    yours = {"Authorization": "Bearer two"}
    seen = []
    for path, item in api.get("/openapi.json").json()["paths"].items():
        if "{job_id}" not in path:
            continue
        for method in item:
            where = path.replace("{job_id}", job_id).replace("{index}", "0")
            assert api.request(method, where, headers=yours).status_code == 404, (method, path)
            seen.append((method, path))
    assert len(seen) >= 5
    with (
        pytest.raises(WebSocketDenialResponse) as denial,
        api.websocket_connect(f"{LOCAL}/jobs/{job_id}/events", headers=yours),
    ):
        pass
    assert denial.value.status_code == 404
    ticket = api.post("/tickets", headers=yours).json()["ticket"]
    with (
        pytest.raises(WebSocketDenialResponse) as denial,
        api.websocket_connect(f"{LOCAL}/jobs/{job_id}/events?ticket={ticket}", headers={"Authorization": ""}),
    ):
        pass
    assert denial.value.status_code == 404
    assert api.get(f"/jobs/{job_id}").json()["status"] == "succeeded"


SCRIPT = "<img src=x onerror=alert(1)>"


def test_client_input_is_never_served_as_html(api: TestClient) -> None:
    """ComfyUI's CVE-2024-10099, ComfyUI_PromptManager#109."""
    answers = [
        api.post("/generate", json={"label": SCRIPT}),
        api.post("/generate", json={SCRIPT: 1}),
        api.get(f"/jobs/{SCRIPT}"),
        api.get(f"/{SCRIPT}"),
        api.get("/jobs", params={"cursor": SCRIPT}),
        api.post("/verify", content=b"<svg onload=alert(1)>", headers={"Content-Type": "image/svg+xml"}),
        api.post("/verify", content=SCRIPT.encode(), headers={"Content-Type": "image/png"}),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_a_picture_is_served_with_its_media_type_and_nosniff(format: str, api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.succeeded(format=format)
    answer = api.get(f"/jobs/{job_id}/images/0", headers={"Accept": "text/html"})
    assert answer.headers["content-type"] == f"image/{format}"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_listing_costs_the_same_after_two_thousand_jobs(api: TestClient, fake_worker: Any, client: redis.Redis) -> None:
    """ComfyUI#8176: listing cost grew with history."""
    for k in range(40):
        fake_worker.create(at=1000.0 + k)
    few, few_bytes = _listing_cost(api, client)
    for k in range(2000):
        fake_worker.create(at=2000.0 + k)
    page = api.get("/jobs", params={"limit": 100})
    assert len(page.json()["jobs"]) == 100
    assert len(page.content) < 1_000_000
    many, many_bytes = _listing_cost(api, client)
    assert many == few
    assert many_bytes < 1.1 * few_bytes


def _listing_cost(api: TestClient, client: redis.Redis) -> tuple[dict[str, int], int]:
    """What a page of 20 jobs takes: how often each command of Redis runs, and the bytes that Redis sends."""
    api.get("/jobs")  # loads the scripts, and connects
    client.config_resetstat()
    assert len(api.get("/jobs").json()["jobs"]) == 20
    sent = client.info("stats")["total_net_output_bytes"]
    calls = {name: each["calls"] for name, each in client.info("commandstats").items()}
    background = ("cmdstat_info", "cmdstat_config", "cmdstat_ping", "cmdstat_xread", "cmdstat_client", "cmdstat_hello")
    return {name: count for name, count in calls.items() if not name.startswith(background)}, sent


def test_pings_keep_a_quiet_stream_open(url: str, fake_worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """girder#797, flask-sse#3: proxies cut a silent stream after a minute."""
    assert event_stream.PING_SECONDS <= 15
    monkeypatch.setattr(event_stream, "PING_SECONDS", 0.05)
    monkeypatch.setattr(events, "QUIET_SECONDS", 0.05)
    job_id = fake_worker.create()
    with httpx.stream("GET", f"{url}/jobs/{job_id}/events", trust_env=False, verify=False, timeout=60) as answer:
        assert answer.headers["x-accel-buffering"] == "no"
        lines, pings = answer.iter_lines(), 0
        while pings < 2:
            pings += next(lines) == ": ping"
        fake_worker.store.cancel(job_id)
        last = [line for line in lines if line.startswith("data: ")][-1]
    assert json.loads(last.removeprefix("data: "))["type"] == "canceled"
