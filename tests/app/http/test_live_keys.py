"""Keys that are added, changed and revoked while the server runs, and the options of their lines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from denoised.app.http.api_keys import KeyFileError, KeyRing, new_key
from denoised.app.http.key_limits import KeyLimits
from denoised.app.http.live_keys import LiveKeys

TIMEOUT = 30.0


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[..., Path]:
    """`key_file(*lines)`: the file with these lines, replaced at once as an editor does."""

    def write(*lines: str) -> Path:
        new, path = tmp_path / "new", tmp_path / "keys"
        new.write_text("\n".join(lines))
        return new.replace(path)

    return write


def test_options_follow_the_key_and_belong_to_the_name(key_file: Callable[..., Path]) -> None:
    (one, first), (two, second) = new_key("phone"), new_key("phone")
    line = f"{first} weight=2.5 jobs=10 evaluations=500 per_minute=600 per_day=9000 images=40 operator"
    ring = KeyRing.read(key_file(line, second, "plain weight=3"))
    assert ring.owner(one) == ring.owner(two) == "phone"
    assert ring.limits["phone"] == KeyLimits(2.5, 10, 500, 600, 9000, 40, operator=True)
    assert ring.limits[str(ring.owner("plain"))] == KeyLimits(weight=3)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("weigth=2", "weigth=2"),
        ("weight=0", "weight is '0'"),
        ("weight=nan", "weight is 'nan'"),
        ("weight=1001", "0.001 … 1000"),
        ("jobs=0", "jobs is '0'"),
        ("per_day=1e6", "per_day is '1e6'"),
        ("images=-1", "images is '-1'"),
        ("per_minute=" + "9" * 5000, "per_minute is '999"),
        ("jobs=1 jobs=2", "jobs stands twice"),
        ("jobs", "'jobs' is unknown"),
        ("operator=yes", "'operator=yes' is unknown"),
    ],
)
def test_a_wrong_option_is_named_with_its_line_and_what_is_allowed(
    key_file: Callable[..., Path], option: str, named: str
) -> None:
    with pytest.raises(KeyFileError) as refused:
        KeyRing.read(key_file("# keys", f"{new_key('phone')[1]} {option}"))
    assert "line 2: " in str(refused.value)
    assert named in str(refused.value)
    assert len(str(refused.value)) < 400


def test_keys_are_added_changed_and_revoked_while_the_server_runs(key_file: Callable[..., Path]) -> None:
    (one, first), (two, second) = new_key("one"), new_key("two")
    file = key_file(first)
    keys = LiveKeys(KeyRing.from_keys(["fixed"]) | KeyRing.read(file), file)
    assert keys.reload() == frozenset()
    key_file(f"{first} weight=4", second)
    assert keys.reload() == frozenset()
    assert keys.current.owner(two) == "two"
    assert keys.limits("one").weight == 4
    key_file(second)
    assert len(keys.reload()) == 1
    assert keys.current.owner(one) is None
    assert keys.limits("one") == KeyLimits()
    assert keys.current.owner("fixed") is not None, "a key of the environment stays"
    key_file("")
    assert len(keys.reload()) == 1
    assert keys.required, "nobody is let in without a key when the last one is gone"


def test_an_invalid_or_missing_file_changes_nothing_and_is_logged_once(
    key_file: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    key, line = new_key("one")
    file = key_file(line)
    keys = LiveKeys(KeyRing.read(file), file)
    for damage in (lambda: key_file(line, "phone:sha256:abc"), file.unlink):
        caplog.clear()
        damage()
        for _ in range(3):
            assert keys.reload() == frozenset()
        assert keys.current.owner(key) == "one"
        assert len(caplog.records) == 1
    key_file(new_key("other")[1])
    assert len(keys.reload()) == 1


def test_the_watcher_survives_a_defect(key_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (_, first), (_, second) = new_key("one"), new_key("two")
    file = key_file(first)
    keys, revoked = LiveKeys(KeyRing.read(file), file), list[frozenset[str]]()
    monkeypatch.setattr("denoised.app.http.live_keys.CHECK_SECONDS", 0.01)
    calls, reload = [], keys.reload

    def failing_once() -> frozenset[str]:
        calls.append(1)
        return reload() if len(calls) > 1 else 1 / 0  # type: ignore[return-value]

    monkeypatch.setattr(keys, "reload", failing_once)

    async def run() -> None:
        seen = asyncio.Event()
        task = asyncio.create_task(keys.watch(lambda hashes: (revoked.append(hashes), seen.set())[1]))
        key_file(second)
        await seen.wait()
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), TIMEOUT))
    assert list(map(len, revoked)) == [1]


def test_open_streams_of_a_revoked_key_end(
    key_file: Callable[..., Path],
    start_server: Callable[..., str],
    fake_worker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an event stream, as a WebSocket, and as one with a ticket; those of the name's other key go on."""
    monkeypatch.setattr("denoised.app.http.live_keys.CHECK_SECONDS", 0.05)
    fake_worker.serve()
    (old, revoked), (new, kept) = new_key("phone"), new_key("phone")
    file = key_file(revoked, kept)
    url = start_server(ring=KeyRing.read(file), api_keys_file=file)
    headers = {name: {"Authorization": f"Bearer {key}"} for name, key in (("old", old), ("new", new))}
    job = httpx.post(f"{url}/generate", json={}, headers=headers["old"]).json()
    events = f"{url.replace('http', 'ws')}/jobs/{job['id']}/events"
    ticket = httpx.post(f"{url}/tickets", headers=headers["old"]).json()["ticket"]
    spare = httpx.post(f"{url}/tickets", headers=headers["old"]).json()["ticket"]
    with (
        connect(events, additional_headers=headers["old"]) as first,
        connect(f"{events}?ticket={ticket}") as second,
        connect(events, additional_headers=headers["new"]) as third,
        httpx.stream("GET", f"{url}/jobs/{job['id']}/events", headers=headers["old"], timeout=TIMEOUT) as stream,
    ):
        lines = stream.iter_lines()
        for socket in (first, second, third):
            assert json.loads(socket.recv(TIMEOUT))["type"] == "queued"
        key_file(kept)
        for socket in (first, second):
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(TIMEOUT)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "the API key was revoked")
        assert ": the API key was revoked" in list(lines)
        with pytest.raises(TimeoutError):
            third.recv(0.3)
    assert httpx.get(f"{url}/jobs", headers=headers["old"]).status_code == 401
    assert httpx.get(f"{url}/jobs", headers=headers["new"]).json()["jobs"][0]["id"] == job["id"]
    with pytest.raises(Exception, match="401"), connect(f"{events}?ticket={spare}"):
        pass


@pytest.mark.parametrize("headers", [{"Prefer": "wait=30"}, {"Accept": "image/png"}], ids=["wait", "picture"])
def test_clients_that_wait_with_a_revoked_key_are_answered_at_once(
    headers: dict[str, str],
    key_file: Callable[..., Path],
    start_server: Callable[..., str],
    fake_worker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their jobs continue, and so do clients that wait with another key of the same name."""
    monkeypatch.setattr("denoised.app.http.live_keys.CHECK_SECONDS", 0.05)
    fake_worker.serve()
    (old, revoked), (new, kept) = new_key("phone"), new_key("phone")
    file = key_file(revoked, kept)
    url = start_server(ring=KeyRing.read(file), api_keys_file=file)
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {new}"}, timeout=TIMEOUT) as client:

        def generate(key: str) -> httpx.Response:
            return client.post("/generate", json={}, headers={**headers, "Authorization": f"Bearer {key}"})

        with ThreadPoolExecutor(2) as pool:
            waiting, other = pool.submit(generate, old), pool.submit(generate, new)
            while len(client.get("/jobs").json()["jobs"]) < 2:
                time.sleep(0.02)
            assert not waiting.done()
            key_file(kept)
            answer = waiting.result(TIMEOUT)
            assert answer.status_code == 401
            job = answer.json()["job"]
            assert answer.json()["detail"] == f"the API key was revoked; job {job} continues"
            assert client.get(f"/jobs/{job}").json()["status"] == "queued"
            time.sleep(0.2)
            assert not other.done()
            for each in client.get("/jobs").json()["jobs"]:
                client.delete(f"/jobs/{each['id']}")
            assert other.result(TIMEOUT).status_code == (409 if "Accept" in headers else 200)
