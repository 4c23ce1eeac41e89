"""The embedded store: any data directory works, and a folder never has two servers or one without our options."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from denoised.app.launch import embedded_store
from denoised.app.launch.embedded_store import EmbeddedStore, try_start
from denoised.app.launch.errors import LaunchError
from denoised.app.launch.socket_address import MAX_SOCKET_PATH, reachable_socket, socket_url
from denoised.jobs.redis.connection import connect

STRANGE_NAMES = [
    "a b",
    " ",
    'it\'s "quoted"',
    "#hash?query=%41&x",
    "[x]*{y}",
    "back\\slash",
    "new\nline\ttab",
    "ünï 🐈",
    "--port 6390",
    "$HOME `id`;",
    "long" * 50,
    "\udcff\udcfe",  # not UTF-8
]


def client_of(data_dir: Path) -> redis.Redis:
    with reachable_socket(data_dir) as path:
        client = connect(socket_url(path), 5.0)
        client.ping()  # the connection outlives the path
        return client


@pytest.mark.parametrize("name", STRANGE_NAMES, ids=ascii)
def test_any_data_directory_works_and_its_jobs_survive(tmp_path: Path, name: str) -> None:
    for expected in (None, b"1"):
        with EmbeddedStore(tmp_path / name):
            client = client_of(tmp_path / name)
            assert client.get("job") == expected
            client.set("job", 1)
            client.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_store_listens_on_its_socket_only_and_keeps_everything(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "[x]", {"maxmemory": "100000000"}):
        client = client_of(tmp_path / "[x]")
        found = client.config_get("port", "appendonly", "appendfsync", "maxmemory-policy", "dir")
        client.close()
        assert (tmp_path / "[x]" / "valkey.sock").stat().st_mode & 0o777 == 0o600
    assert found == {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "dir": str(tmp_path / "[x]" / "valkey"),
    }


@pytest.mark.parametrize(("ignored", "value"), [("port", "0"), ("appendonly", "yes"), ("dir", ".")])
def test_a_server_that_did_not_read_its_options_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: str, value: str
) -> None:
    configuration = embedded_store._configuration
    wrong = {"port": "6379", "appendonly": "no", "dir": "/"}[ignored]
    monkeypatch.setattr(
        embedded_store, "_configuration", lambda path, names: {**configuration(path, names), ignored: wrong}
    )
    with pytest.raises(LaunchError, match=f"another {ignored} than asked for: '{wrong}'"), EmbeddedStore(tmp_path):
        pytest.fail("it was started")
    with reachable_socket(tmp_path) as path, pytest.raises(redis.exceptions.ConnectionError):
        connect(socket_url(path)).ping()


def test_an_option_that_valkey_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="Valkey does not start: ") as caught:
        EmbeddedStore(tmp_path, {"maxmemory-policy": "sometimes"}).__enter__()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["short", "long" * 50])
@pytest.mark.parametrize("answers", [True, False])
def test_a_server_whose_parent_was_killed_is_replaced(tmp_path: Path, name: str, answers: bool) -> None:
    """Also from another TMPDIR, and although its socket is gone."""
    data_dir = tmp_path / name
    orphan = start_orphan(data_dir, tmp_path)
    client = client_of(data_dir)
    client.set("job", "kept")
    client.close()
    if not answers:
        (data_dir / "valkey.sock").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("denoised.app.launch.store_lock.SHUTDOWN_SECONDS", 0.5)
        with EmbeddedStore(data_dir):
            assert not running(orphan)
            again = client_of(data_dir)
            assert again.get("job") == b"kept"
            again.close()


def test_two_stores_never_run_on_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that neither answers nor can be identified keeps its folder."""
    monkeypatch.setattr("denoised.app.launch.store_lock.SHUTDOWN_SECONDS", 0.2)
    orphan = start_orphan(tmp_path, tmp_path)
    (tmp_path / "valkey.sock").unlink()
    (tmp_path / "valkey" / "store.lock").write_text("1\n")
    try:
        with pytest.raises(LaunchError, match="in use by another Valkey"), EmbeddedStore(tmp_path):
            pytest.fail("it was started")
    finally:
        os.kill(orphan, signal.SIGKILL)


def start_orphan(data_dir: Path, temporary: Path) -> int:
    """The process id of a server whose parent was killed at once."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from denoised.app.launch import embedded_store as e\n"
        "e.die_with_parent = lambda: None\n"
        "with e.EmbeddedStore(Path(sys.argv[1])) as store:\n"
        "    print(store._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert done.returncode == -signal.SIGKILL
    return int(done.stdout)


def running(pid: int) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


def test_a_long_path_is_reached_through_a_short_one_that_disappears(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 50)
    with reachable_socket(data_dir) as path:
        assert len(os.fsencode(path)) <= MAX_SOCKET_PATH
        assert path.parent.readlink() == data_dir
    assert not path.parent.parent.exists()
    with reachable_socket(tmp_path) as path:
        assert path == tmp_path / "valkey.sock"


def test_a_temporary_folder_with_a_long_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with reachable_socket(tmp_path / ("long" * 50)) as path:
        assert len(os.fsencode(path)) <= MAX_SOCKET_PATH


def test_a_socket_url_quotes_what_a_url_reads_otherwise() -> None:
    assert socket_url(Path("/a b/#?%41/[x].sock")) == "unix:///a%20b/%23%3F%2541/%5Bx%5D.sock"


def test_a_store_is_tried_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert try_start()[0].isdecimal()
    assert list(tmp_path.iterdir()) == []
