"""Authentication: keys are checked first; without keys, only local programs are served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

MakeClient = Callable[..., TestClient]

LOCAL = "ws://127.0.0.1:8000"
ROUTES = [
    ("GET", "/models", 200),
    ("GET", "/jobs", 200),
    ("GET", "/jobs/nobody", 404),
    ("GET", "/jobs/nobody/images/0", 404),
    ("GET", "/jobs/nobody/events", 404),
    ("DELETE", "/jobs/nobody", 404),
    ("GET", "/nothing/here", 404),
    ("PATCH", "/generate", 405),
    ("GET", "/jobs?limit=0", 422),
    ("POST", "/tickets", 200),
    ("POST", "/verify", 422),
    ("GET", "/metrics", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/docs", 200),
]


def check_problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    return body


@pytest.mark.parametrize(("method", "path", "status"), ROUTES)
def test_the_key_is_checked_before_anything_else(
    method: str, path: str, status: int, make_client: MakeClient, fake_worker: Any
) -> None:
    """401 before 404, 405 and 422."""
    fake_worker.serve()
    api = make_client(keys=("secret-1", "secret-2"))
    for wrong in ("", "Bearer wrong", "Bearer", "Basic secret-1", "secret-1", "Bearer secret-1,secret-2"):
        answer = api.request(method, path, headers={"Authorization": wrong})
        check_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert api.request(method, path).status_code == status
    assert api.request(method, path, headers={"Authorization": "bearer secret-2"}).status_code == status


def test_the_key_is_checked_before_the_body(make_client: MakeClient) -> None:
    api = make_client(keys=("secret",))
    headers = {"Authorization": "Bearer wrong", "Content-Type": "text/plain"}
    check_problem(api.post("/generate", content=b"{", headers=headers), 401)
    check_problem(api.post("/generate", content=b"{", headers={"Content-Type": "text/plain"}), 415)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/playground/app.js"])
def test_open_routes_need_no_key(path: str, make_client: MakeClient) -> None:
    api = make_client(keys=("secret",))
    assert api.get(path, headers={"Authorization": ""}, follow_redirects=False).status_code != 401


@pytest.mark.parametrize("path", ["/playground", "/healthz/x", "http://127.0.0.1:8000//", "/Healthz", "/playgroundx/"])
def test_paths_that_resemble_open_routes_need_a_key(path: str, make_client: MakeClient) -> None:
    check_problem(make_client(keys=("secret",)).get(path, headers={"Authorization": ""}), 401)


def test_no_response_repeats_a_key(make_client: MakeClient) -> None:
    answer = make_client(keys=("secret",)).get("/jobs", headers={"Authorization": "Bearer almost-secret"})
    assert "secret" not in answer.text


LOCAL_HOSTS = ["127.0.0.1", "127.0.0.1:8000", "127.0.0.2", "127.255.0.3:1", "localhost:1", "LOCALHOST", "localhost."]
LOCAL_HOSTS += ["localhost.:8000", "localhost:", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"]


@pytest.mark.parametrize("host", [*LOCAL_HOSTS, "my.lan:80", "MY.lan."])
def test_a_local_or_allowed_host_is_served(host: str, make_client: MakeClient) -> None:
    api = make_client(allowed_hosts=frozenset({"my.lan"}))
    assert api.get("/healthz", headers={"Host": host}).status_code == 200


HOSTS = ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "[::1", "localhost@evil.example", "0.0.0.0"]
HOSTS += ["[::1].evil.com", "[::1]evil.com", "[::1]:8000.evil.com", "[::1]:80@evil.com", "evil.com[::1]", "::1", "[::]"]
HOSTS += ["localhost..", "localhost.evil.com", "127.evil.com", "127.0.0.1:99999", "127.0.0.1:8x", "localhost:8000:1"]
HOSTS += ["localhost/evil.com", "localhost#evil.com", "localhost?", "[localhost]", "[127.0.0.1]", "127.0.0.1 evil.com"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["/", "/healthz", "/jobs"])
def test_a_foreign_host_is_refused(host: str, path: str, make_client: MakeClient) -> None:
    """DNS rebinding: a foreign name that resolves to this machine."""
    check_problem(make_client().get(path, headers={"Host": host}), 403)


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "https://ours.example"])
def test_the_same_or_an_allowed_origin_is_served(origin: str, make_client: MakeClient) -> None:
    api = make_client(allowed_origins=frozenset({"https://ours.example"}))
    assert api.get("/healthz", headers={"Origin": origin}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"])
def test_the_names_of_this_machine_are_one_site(host: str, origin: str, make_client: MakeClient) -> None:
    """To a browser they are several sites: a page at localhost that calls 127.0.0.1 is cross-site."""
    headers = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "cross-site"}
    assert make_client().get("/healthz", headers=headers).status_code == 200


def test_an_allowed_origin_is_served_although_it_is_cross_site(make_client: MakeClient) -> None:
    api = make_client(allowed_origins=frozenset({"https://ours.example"}))
    headers = {"Origin": "https://ours.example", "Sec-Fetch-Site": "cross-site"}
    assert api.get("/healthz", headers=headers).status_code == 200


ORIGINS = [
    "null",
    "https://evil.example",
    "http://127.0.0.1",
    "http://127.0.0.1:9000",
    "http://localhost:9000",
    "http://localhost",
    "http://localhost.evil.example:8000",
    "http://127.0.0.1@evil.example:8000",
    "http://evil.example@127.0.0.1:8000",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:8000@evil.example",
    "",
    "http://[",
    "garbage",
]


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_foreign_or_malformed_origin_is_refused(origin: str, make_client: MakeClient) -> None:
    check_problem(make_client().post("/generate", json={}, headers={"Origin": origin}), 403)


def test_a_cross_site_request_is_refused_except_for_the_front_page(make_client: MakeClient) -> None:
    api = make_client()
    site = {"Sec-Fetch-Site": "cross-site"}
    assert api.get("/", headers=site, follow_redirects=False).status_code != 403
    check_problem(api.get("/models", headers=site), 403)
    check_problem(api.post("/generate", json={}, headers=site), 403)
    for near in ("same-origin", "same-site", "none"):
        assert api.get("/healthz", headers={"Sec-Fetch-Site": near}).status_code == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json"])
def test_a_body_of_another_media_type_is_refused(kind: str, make_client: MakeClient) -> None:
    """Media types that a page of another site can send without a preflight."""
    answer = make_client().post("/generate", content=b'{"label": null}', headers={"Content-Type": kind})
    assert "application/json" in check_problem(answer, 415)["detail"]


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_any_spelling_of_the_json_media_type_is_accepted(kind: str, api: TestClient) -> None:
    answer = api.post("/generate", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 202, answer.text


def test_no_cors_headers_unless_origins_are_configured(make_client: MakeClient) -> None:
    answer = make_client().get("/healthz", headers={"Origin": "http://127.0.0.1:8000"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("keys", [(), ("secret",)])
def test_a_preflight_from_a_configured_origin_is_allowed(keys: tuple[str, ...], make_client: MakeClient) -> None:
    """A preflight carries no key (Fetch standard, 4.8); what follows it does."""
    api = make_client(keys=keys, allowed_origins=frozenset({"https://ours.example"}))
    headers = {
        "Origin": "https://ours.example",
        "Authorization": "",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = api.options("/generate", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["access-control-allow-origin"] == "https://ours.example"
    refusal = api.get("/jobs/nobody", headers={"Origin": "https://ours.example"})
    assert refusal.headers["access-control-allow-origin"] == "https://ours.example"


def test_each_key_has_its_own_jobs(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    mine, yours = make_client(keys=("one", "two")), {"Authorization": "Bearer two"}
    job_id = mine.post("/generate", json={}).json()["id"]
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/images/0", f"/jobs/{job_id}/events"):
        assert mine.get(path, headers=yours).status_code == 404
    assert mine.delete(f"/jobs/{job_id}", headers=yours).status_code == 404
    assert mine.get("/jobs", headers=yours).json()["jobs"] == []
    assert mine.get(f"/jobs/{job_id}").json()["status"] == "queued"


def refusal(api: TestClient, path: str, **headers: str) -> int:
    """The status with which a handshake is denied."""
    with pytest.raises(WebSocketDenialResponse) as denial, api.websocket_connect(LOCAL + path, headers=headers):
        pass
    assert denial.value.headers["content-type"] == "application/problem+json"
    return int(denial.value.status_code)


def test_a_ticket_opens_one_socket(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(keys=("secret",))
    job_id = api.post("/generate", json={}).json()["id"]
    ticket = api.post("/tickets").json()
    assert ticket["expires_in"] == 30
    assert refusal(api, f"/jobs/{job_id}/events", Authorization="") == 401
    path = f"/jobs/{job_id}/events?ticket={ticket['ticket']}"
    api.delete(f"/jobs/{job_id}")
    with api.websocket_connect(LOCAL + path, headers={"Authorization": ""}) as socket:
        assert [socket.receive_json()["type"] for _ in range(2)] == ["queued", "canceled"]
    assert refusal(api, path, Authorization="") == 401
    assert refusal(api, f"/jobs/{job_id}/events?ticket=made-up", Authorization="") == 401


def test_a_ticket_is_not_accepted_for_requests(make_client: MakeClient) -> None:
    api = make_client(keys=("secret",))
    ticket = api.post("/tickets").json()["ticket"]
    assert api.get(f"/jobs?ticket={ticket}", headers={"Authorization": ""}).status_code == 401


def test_a_socket_from_a_foreign_page_is_refused(api: TestClient) -> None:
    with api.websocket_connect(f"{LOCAL}/generate", headers={"Origin": "http://127.0.0.1:8000"}):
        pass
    assert refusal(api, "/generate", Origin="https://evil.example") == 403
    assert refusal(api, "/generate", Origin="null") == 403
    assert refusal(api, "/generate", Host="evil.example") == 403
