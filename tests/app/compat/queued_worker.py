"""A worker in a thread, for tests whose request blocks until its job ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from starlette.testclient import TestClient


def start_worker(api: TestClient, fake_worker: Any, steps: Callable[[str, int], None]) -> threading.Thread:
    """A worker thread that starts the next queued job and calls `steps(job id, attempt)`."""

    def work() -> None:
        end = time.monotonic() + 60
        while not (jobs := api.get("/jobs").json()["jobs"]):
            assert time.monotonic() < end
            time.sleep(0.02)
        steps(jobs[0]["id"], fake_worker.start(jobs[0]["id"]))

    thread = threading.Thread(target=work)
    thread.start()
    return thread
