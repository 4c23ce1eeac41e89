"""Who may import whom: the front end never reaches torch, the model knows no server."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("app", "worker", "model", "bench")
FROM_WORKER = {
    f"worker.{name}" for name in ("job", "store", "connection", "memory", "keys", "patience", "errors", "log")
}
FROM_MODEL = {"model.card", "model.errors", "model.folders", "model.options"}
HEAVY = {"torch", "numpy", "safetensors", "diffusers"}


def modules(repository: Path, package: str) -> dict[str, Path]:
    """The modules of a package by dotted name."""
    found = {}
    for path in sorted((repository / package).rglob("*.py")):
        parts = path.relative_to(repository).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function, for types or in earnest."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            yield node.module


def ours(repository: Path) -> dict[str, set[str]]:
    """All modules of the project with what each imports."""
    return {name: set(imports(path)) for package in PACKAGES for name, path in modules(repository, package).items()}


def top(name: str) -> str:
    return name.partition(".")[0]


def test_the_front_end_knows_the_workers_store_and_the_models_card_only(repository: Path) -> None:
    for name, imported in ours(repository).items():
        if top(name) == "app":
            assert {i for i in imported if top(i) == "worker"} <= FROM_WORKER, name
            assert {i for i in imported if top(i) == "model"} <= FROM_MODEL, name


def test_no_way_leads_from_the_front_end_to_torch(repository: Path) -> None:
    graph = ours(repository)
    reached = {name for name in graph if top(name) == "app"}
    ahead = set(reached)
    while ahead:
        imported = {other for name in ahead for other in graph[name]}
        ahead = {name for name in graph if name in imported} - reached
        reached |= ahead
    assert reached >= FROM_WORKER
    assert not {(name, i) for name in reached for i in graph[name] if top(i) in HEAVY}


def test_the_worker_knows_no_front_end(repository: Path) -> None:
    for name, imported in ours(repository).items():
        if top(name) == "worker":
            assert "app" not in {top(i) for i in imported}, name


def test_the_model_knows_no_server(repository: Path) -> None:
    forbidden = {"app", "worker", "redis", "rq", "fastapi", "starlette", "uvicorn", "httpx"}
    for name, imported in ours(repository).items():
        if top(name) == "model":
            assert forbidden.isdisjoint(top(i) for i in imported), name


def test_nobody_needs_the_benchmark(repository: Path) -> None:
    for name, imported in ours(repository).items():
        if top(name) != "bench":
            assert "bench" not in {top(i) for i in imported}, name


def test_the_peers_know_nothing_of_this_project(repository: Path) -> None:
    peers = {name: imported for name, imported in ours(repository).items() if name.startswith("bench.peers")}
    assert len(peers) >= 5
    for name, imported in peers.items():
        assert {i for i in imported if top(i) in PACKAGES} <= {"bench.peers.pipeline", "bench.peers.network"}, name


def test_rq_is_named_in_two_files_only(repository: Path) -> None:
    naming = {name for name, imported in ours(repository).items() if "rq" in {top(i) for i in imported}}
    assert naming == {"app.queue", "worker.rq_worker"}


@pytest.mark.parametrize("name", ["app.main", "app.cli", "app.serve", "app.server", "app.client", "app.doctor"])
def test_the_front_end_runs_without_torch_and_numpy(name: str, repository: Path) -> None:
    code = f"import sys, {name}; print(sorted({{'torch', 'numpy', 'diffusers'}} & set(sys.modules)))"
    outcome = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"


SLOW_TO_IMPORT = {"torch", "numpy", "fastapi", "starlette", "pydantic", "redis", "rq", "httpx", "rich", "PIL"}
OF_THE_SERVER = {"torch", "numpy", "fastapi", "starlette", "uvicorn", "pydantic", "redis", "rq", "websockets"}


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("app.cli", SLOW_TO_IMPORT),
        ("app.client", OF_THE_SERVER),
        ("app.terminal.generating", OF_THE_SERVER),
        ("app.terminal.listing", OF_THE_SERVER),
        ("app.terminal.top", OF_THE_SERVER),
    ],
)
def test_commands_load_what_they_need_alone(name: str, spared: set[str], repository: Path) -> None:
    code = f"import sys, {name}; print(sorted({spared!r} & set(sys.modules)))"
    outcome = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"
