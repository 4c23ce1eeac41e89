"""Every invalid request is answered with a problem object that names the cause, never with a 5xx."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

JSON = {"Content-Type": "application/json"}
MAX_BODY = 256 * 1024


def check_problem(response: Any, *statuses: int) -> dict[str, Any]:
    """RFC 9457: its media type and members."""
    assert response.status_code in statuses, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail"} <= set(body)
    assert body["status"] == response.status_code
    assert body["title"]
    return body


@pytest.mark.parametrize("path", ["/nothing", "/jobs/nobody", "/jobs/nobody/images/0", "/jobs/a/b/c"])
def test_an_unknown_path_is_a_problem(path: str, api: TestClient) -> None:
    check_problem(api.get(path, follow_redirects=False), 404, 405)


@pytest.mark.parametrize(("method", "path"), [("PUT", "/generate"), ("POST", "/jobs"), ("POST", "/healthz")])
def test_a_method_that_is_not_allowed_is_a_problem(method: str, path: str, api: TestClient) -> None:
    answer = api.request(method, path)
    check_problem(answer, 405)
    assert answer.headers["allow"]


BODIES: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"7",
    b"NaN",
    b'{"eta": NaN}',
    b'{"eta": Infinity}',
    b'{"guidance_scale": -Infinity, "label": 0}',
    b'{"guidance_scale": 1e999, "label": 0}',
    b'{"n": 1e999}',
    b'{"seed": NaN}',
    b'{"seed": 1e999}',
    b'{"steps": -1e999}',
    b'{"label": NaN}',
    b'{"label": 1e999}',
    b'{"label": {"a": [1, {"b": NaN}]}}',
    b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"label": ' + b"9" * 400 + b"}",
    b'{"label": ' + b"9" * 5000 + b"}",
    b'{"label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"[" * 200_000,
    b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
    b'{"label": "\xff\xfe"}',
    b"\xff\xfe\x00",
    b'{"label": "\xed\xa0\x80"}',
    b'{"label": "\\ud800"}',
    b'{"model": "\\ud800"}',
    b'{"sampler": "\\udfff\\ud800"}',
    b'{"format": "\\ud800"}',
    b'{"preview": "\\ud800"}',
    b'{"\\ud800": 1}',
    b'{"label": "\\u0000"}',
    b'{"model": "\\u0000"}',
    b'{"model": "../../etc/passwd"}',
    b'{"": 1}',
    b'{"n": 0, "n": 0}',
    b'{"label": "' + b"x" * 250_000 + b'"}',
    b'{"' + b"x" * 250_000 + b'": 1}',
]


@pytest.mark.parametrize("body", BODIES, ids=[body[:24].decode("latin-1") for body in BODIES])
def test_an_invalid_body_is_refused_with_a_short_problem(body: bytes, api: TestClient) -> None:
    answer = api.post("/generate", content=body, headers=JSON)
    found = check_problem(answer, 400, 422)
    if found["status"] == 422:
        assert found["errors"]
        assert all(set(error) == {"field", "message"} for error in found["errors"])
    assert len(answer.content) < 20_000 or len(body) > 200_000


def test_an_unpaired_surrogate_is_named_as_what_is_wrong_with_a_text(api: TestClient) -> None:
    found = check_problem(api.post("/generate", content=b'{"model": "\\ud800"}', headers=JSON), 422)
    message = '"\\ud800" was given (allowed: text without unpaired surrogates)'
    assert found["errors"] == [{"field": "model", "message": message}]


UNREADABLE = [
    (b"{", "line 1 column 2"),
    (b'{"n": 1,\n seed}', "line 2 column 2"),
    (b'{"label": "\xff"}', "byte 11 is not valid UTF-8"),
    (b"[" * 200_000, "nested too deeply"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "4300 digits"),
]


@pytest.mark.parametrize(("body", "cause"), UNREADABLE, ids=[cause for _, cause in UNREADABLE])
def test_an_unreadable_body_is_refused_with_the_cause_and_place(body: bytes, cause: str, api: TestClient) -> None:
    found = check_problem(api.post("/generate", content=body, headers=JSON), 422)
    assert [error["field"] for error in found["errors"]] == ["body"]
    assert cause in found["detail"]
    others = {other for _, other in UNREADABLE} - {cause}
    assert not any(other in found["detail"] for other in others)
    with api.websocket_connect("/generate", headers={"Host": "127.0.0.1:8000"}) as socket:
        try:
            socket.send_text(body.decode())
        except UnicodeDecodeError:
            return  # not text, so it cannot be sent
        assert socket.receive_json()["errors"] == found["errors"], "the same over a WebSocket"


def test_an_unknown_field_is_refused_with_the_list_of_fields(api: TestClient) -> None:
    body = {"Label": "sneaker", "foo": 1}
    found = check_problem(api.post("/generate", json=body), 422)
    messages = {error["field"]: error["message"] for error in found["errors"]}
    assert messages["Label"].startswith(
        'is not a field of this request; did you mean label? (given: "sneaker"; allowed: model,'
    )
    assert messages["foo"].startswith("is not a field of this request (given: 1; allowed: model, label, prompt, ")
    openai_error = api.post("/v1/images/generations", json={"prompt": "", "sise": "auto"}).json()["error"]
    assert openai_error["param"] == "sise"
    assert "did you mean size?" in openai_error["message"]
    assert "response_format" in openai_error["message"]


def test_the_seed_limit_is_enforced_and_documented(api: TestClient) -> None:
    largest = 2**53 - 1
    assert api.post("/generate", json={"seed": largest}).json()["seed"] == largest
    found = check_problem(api.post("/generate", json={"seed": largest + 1}), 422)
    assert f"seed: {largest + 1} was given (allowed: {largest} or less)" in found["detail"]
    schemas = api.get("/openapi.json").json()["components"]["schemas"]
    for name in ("GenerateRequest", "ImagesRequest"):
        (whole, _) = schemas[name]["properties"]["seed"]["anyOf"]
        assert (whole["minimum"], whole["maximum"]) == (0, largest)


def test_an_invalid_cursor_is_refused_with_its_origin(api: TestClient) -> None:
    found = check_problem(api.get("/jobs?cursor=zzz"), 422)
    assert found["errors"] == [
        {"field": "cursor", "message": 'should be the next_cursor of the previous page (given: "zzz")'}
    ]
    parameters = api.get("/openapi.json").json()["paths"]["/jobs"]["get"]["parameters"]
    (schema,) = [parameter["schema"] for parameter in parameters if parameter["name"] == "cursor"]
    assert re.match(schema["pattern"], "1795430000.25-0a")


def test_an_error_names_a_header_as_documented(api: TestClient) -> None:
    found = check_problem(api.post("/generate", json={}, headers={"Idempotency-Key": "k" * 256}), 422)
    assert [error["field"] for error in found["errors"]] == ["Idempotency-Key"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_json_in_other_unicode_encodings_is_read_or_refused(encoding: str, api: TestClient) -> None:
    answer = api.post("/generate", content='{"label": "ботинок"}'.encode(encoding), headers=JSON)
    assert answer.status_code in (202, 400, 422)


def test_an_invalid_field_is_named_with_its_value_and_limit(api: TestClient) -> None:
    found = check_problem(api.post("/generate", json={"label": "sandal", "n": 17}), 422)
    messages = {error["field"]: error["message"] for error in found["errors"]}
    assert set(messages) == {"label", "n"}
    assert '"sandal"' in messages["label"]
    assert "sneaker" in messages["label"]
    assert "17" in messages["n"]
    assert "16" in messages["n"]


def test_a_body_over_the_limit_is_refused(api: TestClient) -> None:
    check_problem(api.post("/generate", content=b" " * (MAX_BODY + 1), headers=JSON), 413)


def test_a_declared_length_over_the_limit_is_refused_unread(api: TestClient) -> None:
    """fastapi#1181: one gigabyte is declared."""
    check_problem(api.post("/generate", content=b"{}", headers={**JSON, "Content-Length": "1000000000"}), 413)


def test_a_chunked_body_over_the_limit_is_refused(api: TestClient) -> None:
    """fastapi#1181: without a length."""

    def chunks() -> Iterator[bytes]:
        for _ in range(16):
            yield b" " * (1024 * 1024)

    check_problem(api.post("/generate", content=chunks(), headers=JSON), 413)


def test_a_body_within_the_limit_is_accepted(api: TestClient) -> None:
    body = b'{"seed": 5}' + b" " * (MAX_BODY - 100)
    assert api.post("/generate", content=body, headers=JSON).status_code == 202


HEADERS = [
    {"Prefer": "wait=\xff"},
    {"Accept": "image/png;q=\xff"},
    {"Idempotency-Key": "k" * 256},
    {"Idempotency-Key": ""},
    {"Last-Event-ID": "abc"},
    {"If-None-Match": "\xff"},
]


@pytest.mark.parametrize("headers", HEADERS, ids=str)
def test_a_malformed_header_is_ignored_or_refused(headers: dict[str, str], api: TestClient, fake_worker: Any) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    job_id = fake_worker.succeeded()
    answers = [
        api.get(f"/jobs/{job_id}/images/0", headers=raw),
        api.get(f"/jobs/{job_id}/events", headers=raw),
        api.get(f"/jobs/{job_id}", headers=raw),
    ]
    if "image" not in headers.get("Accept", ""):
        answers.append(api.post("/generate", json={}, headers=raw))
    assert all(answer.status_code < 500 for answer in answers)


PATHS = [
    "/jobs/{id}:events",
    "/jobs/{id}:image:0",
    "/jobs/{id}%00",
    "/jobs/%ff%fe",
    "/jobs/..%2f..%2fetc%2fpasswd",
    "/jobs/{id}:events/events",
    "/jobs/{id}:events/images/0",
    "/jobs/{id}/images/-1",
    "/jobs/{id}/images/99999999999999999999999999",
    "/jobs/{id}/images/x",
    "/jobs/{id}/images/0%2f..",
    "/jobs/{id}/animation:",
    "/jobs?cursor=nan",
    "/jobs?cursor=1",
    "/jobs?cursor=1-",
    "/jobs?cursor=1.5-a/b",
    "/jobs?cursor=-1-a",
    "/jobs?cursor=inf",
    "/jobs?cursor=-inf",
    "/jobs?cursor=1e999",
    "/jobs?cursor=1_0",
    "/jobs?cursor=",
    "/jobs?cursor=%00",
    "/jobs?cursor=" + "9" * 40,
    "/jobs?limit=0",
    "/jobs?limit=101",
    "/jobs?limit=" + "9" * 5000,
    "/jobs/{id}/events?after=-1",
    "/jobs/{id}/events?after=" + "9" * 30,
    "/jobs/{id}/events?after=x",
    "/" + "x" * 5000,
]


@pytest.mark.parametrize("path", PATHS, ids=[path[:40] for path in PATHS])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_malformed_path_is_never_a_server_error(method: str, path: str, api: TestClient, fake_worker: Any) -> None:
    """ComfyUI#12285. It never returns bytes of anything but the job, either."""
    job_id = fake_worker.succeeded(job_id="0" * 32)
    answer = api.request(method, path.replace("{id}", job_id))
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        check_problem(answer, answer.status_code)


def test_client_input_is_repeated_without_control_characters(api: TestClient) -> None:
    """ComfyUI#6034, uvicorn's CVE-2020-7694."""
    answer = api.get("/nothing%0d%0a%1b[31m<img src=x>")
    assert "\x1b" not in check_problem(answer, 404)["detail"]
    assert "\n" not in answer.json()["detail"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.sampled_from(["model", "label", "n", "seed", "sampler", "steps", "eta", "guidance_scale", "format", "x"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(FIELDS, VALUES, max_size=4))
def test_no_json_object_causes_a_server_error(body: dict[str, Any], api: TestClient) -> None:
    answer = api.post("/generate", content=json.dumps(body), headers=JSON)
    assert answer.status_code in (202, 400, 422), answer.text
