"""The logs of all programs of `denoised serve`, after requests that try to put a secret or a second line into them; and
access to the embedded store."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from denoised.app.http.api_keys import new_key
from tests import fork_server

TIMEOUT_SECONDS = 300.0
FORGERY = "a\r\nlevel=error\x1b[31m\x00"


@pytest.fixture(scope="module")
def keyed(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, str]:
    """A service, a key from its file, and one from its environment."""
    folder = tmp_path_factory.mktemp("keyed")
    key, line = new_key("phone")
    (folder / "keys").write_text(f"{line}\n")
    plain = "a-plain-key-of-the-environment"
    environment = {"DENOISED_API_KEYS_FILE": str(folder / "keys"), "DENOISED_API_KEYS": plain}
    return start_service(folder / "data", environment=environment), key, plain


def test_all_logs_share_the_request_id_and_contain_no_secret(keyed: tuple[Any, str, str]) -> None:
    """taskdog#1152, codex-autorunner#75, uvicorn's CVE-2020-7694."""
    service, key, plain = keyed
    with service.client() as client:
        client.headers["Authorization"] = f"Bearer {key}"
        sent = {"X-Request-Id": "through-all", "Prefer": "wait=60"}
        job = client.post("/generate", json={"steps": 2, "label": 0}, headers=sent).json()
        assert job["status"] == "succeeded"
        ticket = client.post("/tickets").json()["ticket"]
        stream = f"{service.url.replace('http', 'ws')}/jobs/{job['id']}/events?ticket={ticket}"
        with connect(stream) as events:
            assert json.loads(events.recv())["type"] == "queued"
        with pytest.raises(InvalidStatus):
            connect(stream)
        assert "succeeded" in client.get(f"/jobs/{job['id']}/events").text
        client.get("/jobs/" + "".join(f"%{byte:02x}" for byte in FORGERY.encode()), params={"key": key})
        client.get(
            "/jobs",
            headers={"Authorization": f"Bearer {plain}x", "User-Agent": "\x1b[31m", "X-Request-Id": "a b " + key},
        )
        client.post("/generate", json={"label": FORGERY}, headers={"Idempotency-Key": plain})
        assert client.get("/jobs", headers={"Authorization": f"Bearer {plain}"}).json()["jobs"] == [], (
            "each has its own"
        )
        assert client.get(f"/jobs/{job['id']}", headers={"Authorization": f"Bearer {plain}"}).status_code == 404
    text = _settled(service.log, '"event": "job over"')
    for secret in (key, plain, ticket):
        assert secret not in text
    assert all(" " <= character <= "~" or character in "\n…" for character in text)
    greeting, lines = _parted(text)
    assert len(greeting) == 3, "ready, the models, and a command"
    through = [line["event"] for line in lines if line.get("request_id") == "through-all"]
    assert sorted(through) == ["job accepted", "job over", "job started", "request"]
    assert {line["owner"] for line in lines if line["event"] == "job accepted"} == {"phone"}
    assert {line["logger"] for line in lines} >= {"denoised.api", "denoised.worker"}
    assert all({"time", "level", "logger", "event"} <= set(line) for line in lines)


def test_the_printed_command_sends_the_key_when_keys_are_required(keyed: tuple[Any, str, str], tmp_path: Path) -> None:
    service, key, _ = keyed
    ready, _, line = _parted(service.log.read_text())[0]
    assert f"docs: {service.url}/playground/docs.html" in ready, "the page that a browser can open"
    environment = os.environ | {"DENOISED_API_KEY": key}
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, check=True, timeout=TIMEOUT_SECONDS)
    (made,) = tmp_path.iterdir()
    assert made.read_bytes().startswith(b"\x89PNG")


def test_the_openai_api_logs_the_request_id_and_metrics_contain_no_secret(keyed: tuple[Any, str, str]) -> None:
    service, key, plain = keyed
    with service.client() as client:
        client.headers["Authorization"] = f"Bearer {key}"
        body = {"model": "fashion-mnist", "prompt": "a bag", "steps": 2, "user": "s3cret-user"}
        sent = {"X-Request-Id": "through-v1"}
        answer = client.post("/v1/images/generations", json=body, headers=sent)
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "through-v1")
        refused = client.post("/v1/images/generations", json={"model": "fashion-mnist", "prompt": plain}, headers=sent)
        assert refused.status_code == 400
        metrics = client.get("/metrics").text
    job = answer.headers["x-job-id"]
    end = time.monotonic() + TIMEOUT_SECONDS
    while not [line for line in _through(service.log, "through-v1") if line["event"] == "job over"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    lines = _through(service.log, "through-v1")
    assert sorted(line["event"] for line in lines) == ["job accepted", "job over", "job started", "request", "request"]
    assert {line["job"] for line in lines if "job " in line["event"]} == {job}
    assert {line["status"] for line in lines if line["event"] == "request"} == {200, 400}
    for secret in (key, plain, "phone", "s3cret-user", job):
        assert secret not in metrics
    assert "s3cret-user" not in service.log.read_text()
    assert plain not in service.log.read_text()


def test_the_store_listens_only_on_a_socket_of_its_owner(keyed: tuple[Any, str, str]) -> None:
    """rq#2389: a writable Redis must not be open to everyone, even if nothing in it is executed."""
    service, _, plain = keyed
    mode = (service.data_dir / "valkey.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    store = [pid for pid, command in service.children().items() if "valkey" in command]
    assert store
    for pid in store:
        assert not _listens(pid)
    others = [pid for pid, command in service.children().items() if "app api" not in command]
    for pid in others:
        environment = Path(f"/proc/{pid}/environ")
        assert not environment.exists() or plain.encode() not in environment.read_bytes(), (
            "none has the keys but the API"
        )


def test_the_store_persists_evicts_nothing_and_has_a_memory_limit(keyed: tuple[Any, str, str]) -> None:
    """rq#1280: an evicting store loses jobs without an error."""
    service, _, _ = keyed
    with redis.Redis(unix_socket_path=str(service.data_dir / "valkey.sock"), decode_responses=True) as store:
        found: Any = store.config_get("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
    limit = int(found.pop("maxmemory"))
    assert found == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    assert 0 < limit < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("command", [["denoised.app", "api"], ["denoised.worker"]])
def test_an_invalid_redis_url_is_a_one_line_error_without_its_password(command: list[str]) -> None:
    """urllib takes the text after the password's slash for a port, and its message repeats it."""
    environment = os.environ | {"REDIS_URL": "redis://:tuna/fish@127.0.0.1:6379/0"}
    done = fork_server.run(
        [sys.executable, "-m", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "Redis URL" in last
    assert "tuna" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gigabyte_is_refused_at_once_without_using_memory(keyed: tuple[Any, str, str]) -> None:
    """fastapi#1181: declared, and in chunks without a length, while other requests are served."""
    service, key, _ = keyed
    (api,) = [pid for pid, command in service.children().items() if "app api" in command]
    before = _resident(api)
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST /generate HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_SECONDS) as declared:
        declared.sendall(f"{head}Content-Length: {10**9}\r\n\r\n".encode())
        assert declared.recv(1000).startswith(b"HTTP/1.1 413")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_SECONDS) as chunked, service.client() as client:
        chunked.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        sent = 0
        while sent < 200 and not select.select([chunked], [], [], 0)[0]:
            chunked.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
            sent += 1
            assert client.get("/healthz").status_code == 200
        assert chunked.recv(1000).startswith(b"HTTP/1.1 413")
    assert sent <= 16, "8 MiB are read, and what lay in the buffers"
    assert _resident(api) - before < 50 * 1024


def _settled(log: Path, needle: str) -> str:
    """The log, once it contains `needle`: the worker writes its last line after the response."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while needle not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    return log.read_text()


def _parted(text: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The lines for people, and the log entries."""
    lines = text.splitlines()
    return [line for line in lines if line[0] != "{"], [json.loads(line) for line in lines if line[0] == "{"]


def _through(log: Path, request_id: str) -> list[dict[str, Any]]:
    """The log entries of a request."""
    return [line for line in _parted(log.read_text())[1] if line.get("request_id") == request_id]


def _listens(pid: int) -> bool:
    """Whether a process has a listening TCP socket (Linux)."""
    if not Path("/proc/net/tcp").exists():
        return False
    inodes = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    return any(row.split()[3] == "0A" and f"socket:[{row.split()[9]}]" in inodes for row in rows)


def _resident(pid: int) -> int:
    """KiB."""
    listing = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(listing.stdout)
