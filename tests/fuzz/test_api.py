"""Schemathesis sends what the OpenAPI document allows, and what it does not, to the running service: examples, coverage
of every constraint, random cases, and chains of operations. All checks but one are on, see schemathesis.toml."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CONFIG = Path(__file__).with_name("schemathesis.toml")
SHORT, LONG = 2, 500  # random cases per operation
QUICK_PHASES = "examples,fuzzing,stateful"  # `coverage`, two thousand cases, takes two thirds of the time


def fuzz(target: Any, examples: int, folder: Path, *more: str) -> None:
    """Run schemathesis; every check passes, and every operation was tested."""
    with target.client() as client:
        body = {"model": "digits", "steps": 2, "n": 2, "preview_every": 1}
        done = client.post("/generate", json=body, headers={"Prefer": "wait=60"}).json()
    assert done["status"] == "succeeded"
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(CONFIG), "run"]
    command += [
        f"{target.url}/openapi.json",
        "--max-examples",
        str(examples),
        "--no-color",
        "--request-timeout",
        "60",
        *more,
    ]
    environment = os.environ | {"FUZZED_JOB": done["id"], "FUZZED_KEY": target.key}
    outcome = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout[-8000:] + outcome.stderr[-2000:]
    counts = re.search(r"(\d+) generated, (\d+) passed", outcome.stdout)
    assert counts is not None, outcome.stdout
    operations = re.search(r"Tested: (\d+)", outcome.stdout)
    assert operations is not None
    assert int(operations[1]) >= 16
    assert int(counts[1]) >= examples * 5
    target.check_alive()


def test_the_service_conforms_to_its_openapi_document(target: Any, tmp_path: Path) -> None:
    fuzz(target, SHORT, tmp_path, "--generation-deterministic", "--phases", QUICK_PHASES)


@pytest.mark.slow
def test_the_service_conforms_to_each_constraint_of_its_openapi_document(target: Any, tmp_path: Path) -> None:
    fuzz(target, SHORT, tmp_path, "--generation-deterministic", "--phases", "coverage")


@pytest.mark.slow
def test_the_service_conforms_to_its_openapi_document_over_many_cases(target: Any, tmp_path: Path) -> None:
    fuzz(target, LONG, tmp_path)
