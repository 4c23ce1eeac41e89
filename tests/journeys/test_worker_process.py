"""The worker process: which process runs the models, and how much memory it uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.journeys.conftest import GARMENTS

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc (Linux)")


def worker_of(service: Any) -> int:
    """The process id of the service's worker."""
    (pid,) = [pid for pid, command in service.children().items() if "-m denoised.worker" in command]
    return int(pid)


def resident(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def test_changing_the_model_fifty_times_leaks_no_memory(service: Any) -> None:
    """stable-diffusion-webui#11632, #12403: memory grew with each switch. Here both models stay loaded."""
    worker, held = worker_of(service), []
    with service.client() as client:
        models = ["fashion-mnist", "digits"]
        for k in range(60):
            body = {"model": models[k % 2], "steps": 2, "seed": k, "guidance_scale": 1}
            job = client.post("/generate", json=body, headers={"Prefer": "wait=60"}).json()
            assert (job["status"], job["model"]) == ("succeeded", models[k % 2])
            held.append(resident(worker))
    slope = float(np.polyfit(range(50), held[10:], 1)[0])
    assert slope < 1.0, held


@pytest.mark.faults
def test_the_process_that_loaded_the_models_runs_all_jobs(start_service: Callable[..., Any], tmp_path: Path) -> None:
    """pytorch#17199, django-q#713: a process forked after torch has started threads hangs in its first parallel region.
    RQ's own workers fork one for each job."""
    service = start_service(tmp_path / "data", environment={"DENOISED_THREADS": "4", "DENOISED_MAX_BATCH": "4"})
    worker = worker_of(service)
    with service.client() as client:
        model = next(each for each in client.get("/models").json() if each["name"] == "fashion-mnist")
        assert model["numerics"].endswith(f"/4-threads/model-{model['digest']}/format-2")
        jobs = [
            client.post("/generate", json={**GARMENTS, "steps": 10, "seed": seed}).json()["id"] for seed in range(20)
        ]
        for job in jobs:
            assert children(worker) == []
            while (status := client.get(f"/jobs/{job}").json()["status"]) not in ("succeeded", "failed"):
                assert children(worker) == []
            assert status == "succeeded"
    assert worker_of(service) == worker
    assert len(list(Path(f"/proc/{worker}/task").iterdir())) > 4
    assert service.stop() == 0


def children(pid: int) -> list[str]:
    """The child processes of all threads of a process."""
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
