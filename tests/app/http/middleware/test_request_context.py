"""Request ids, the log line of each request, and what no log line contains."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

MakeClient = Callable[..., TestClient]
LOCAL = "ws://127.0.0.1:8000"


def entries(caplog: pytest.LogCaptureFixture, event: str = "request") -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.getMessage() == event]


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_valid_request_id_is_used_and_returned_in_every_response(api: TestClient) -> None:
    for path, status in (("/healthz", 200), ("/jobs/nobody", 404), ("/nothing", 404), ("/jobs?limit=0", 422)):
        answer = api.get(path, headers={"X-Request-Id": "Mine-1._x"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "Mine-1._x")
        assert status == 200 or answer.json()["request_id"] == "Mine-1._x"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", 'a"b', "<script>", "é"])
def test_an_invalid_request_id_is_replaced(given: str, api: TestClient) -> None:
    answers = [api.get("/healthz", headers={b"X-Request-Id": given.encode()}) for _ in range(2)]
    made = {answer.headers["x-request-id"] for answer in answers}
    assert len(made) == 2
    assert all(len(request_id) == 32 and request_id.isalnum() for request_id in made)


def test_an_unauthenticated_request_has_an_id(make_client: MakeClient) -> None:
    for answer in (
        make_client(keys=("k",)).get("/jobs", headers={"Authorization": ""}),
        make_client().get("/", headers={"Host": "x"}),
    ):
        assert answer.status_code in (401, 403)
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_job_records_the_id_of_its_request(
    api: TestClient, fake_worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = api.post("/generate", json={}, headers={"X-Request-Id": "carried"}).json()["id"]
    assert fake_worker.store.job(job_id).request_id == "carried"
    (accepted,) = entries(caplog, "job accepted")
    assert (accepted["job"], accepted["evaluations"]) == (job_id, 20)


def test_a_request_is_logged_once_with_its_route_and_without_its_query(
    api: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    api.get("/jobs/abc?secret=1", headers={"X-Request-Id": "r-7"})
    (entry,) = entries(caplog)
    assert (entry["method"], entry["route"], entry["status"], entry["job"]) == ("GET", "/jobs/{job_id}", 404, "abc")
    assert entry["ms"] > 0
    assert "secret" not in repr(entry)


def test_expected_health_checks_are_not_logged(
    make_client: MakeClient, fake_worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    api = make_client()
    assert [api.get(path).status_code for path in ("/readyz", "/healthz")] == [503, 200], "no worker yet"
    fake_worker.serve()
    assert [api.get("/readyz").status_code, api.head("/healthz").status_code] == [200, 200]
    assert entries(caplog) == []
    assert api.post("/readyz", json={}).status_code == 405
    assert api.get("/healthz", headers={"Host": "example.org"}).status_code == 403
    assert [entry["status"] for entry in entries(caplog)] == [405, 403]
    assert 'route="/readyz",status="5xx"' in api.get("/metrics").text, "they are counted all the same"


def test_a_socket_is_logged_once_with_its_close_code(api: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with api.websocket_connect(f"{LOCAL}/generate") as socket:
        socket.send_text("{")
        assert socket.receive_json()["request_id"]
        socket.receive()
    with pytest.raises(WebSocketDenialResponse), api.websocket_connect(f"{LOCAL}/jobs/nobody/events"):
        pass
    accepted, denied = entries(caplog)
    assert (accepted["method"], accepted["route"], accepted["status"]) == ("WEBSOCKET", "/generate", 101)
    assert accepted["close_code"] == 1008
    assert (denied["route"], denied["status"]) == ("/jobs/{job_id}/events", 404)


def test_no_log_line_has_a_key_a_ticket_or_a_query(
    make_client: MakeClient, fake_worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """taskdog#1152: a key in a WebSocket's URL appeared in the access log."""
    caplog.set_level(logging.DEBUG, logger="denoised")
    fake_worker.serve()
    api = make_client(keys=("s3cret-key",))
    ticket = api.post("/tickets").json()["ticket"]
    job_id = api.post("/generate", json={"label": "sneaker"}).json()["id"]
    api.delete(f"/jobs/{job_id}")
    path = f"/jobs/{job_id}/events?ticket={ticket}"
    with api.websocket_connect(LOCAL + path, headers={"Authorization": ""}) as socket:
        assert [socket.receive_json()["type"] for _ in range(2)] == ["queued", "canceled"]
        assert socket.receive()["code"] == 1000
    with pytest.raises(WebSocketDenialResponse), api.websocket_connect(LOCAL + path, headers={"Authorization": ""}):
        pass
    api.get("/jobs?key=s3cret-key", headers={"Authorization": "Bearer s3cret-key-almost"})
    assert len(entries(caplog)) >= 6
    everything = " ".join(repr(vars(record)) for record in caplog.records if record.name.startswith("denoised"))
    assert ticket not in everything
    assert "s3cret" not in everything
    assert {entry.get("owner") for entry in entries(caplog)} == {None, name_of("s3cret-key")}


def name_of(key: str) -> str:
    from denoised.app.http.api_keys import key_hash

    return key_hash(key)[:16]


def test_a_defect_is_a_500_without_details_and_a_log_line_with_them(
    api: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(api.app.state.services.catalog, "listing", broken)  # type: ignore[attr-defined]
    answer = api.get("/models", headers={"X-Request-Id": "r-9"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "r-9"
    assert "swordfish" not in answer.text
    (defect,) = entries(caplog, "defect")
    assert "swordfish" in str(defect["exc_info"][1])
    assert entries(caplog)[-1]["status"] == 500


def test_every_response_forbids_content_sniffing(api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.succeeded()
    for path in ("/healthz", "/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/images/0", f"/jobs/{job_id}/events", "/x"):
        assert api.get(path).headers["x-content-type-options"] == "nosniff", path
