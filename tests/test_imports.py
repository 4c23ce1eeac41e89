"""Who may import whom: the front end never reaches torch, the model knows no server."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGES = ("app", "jobs", "worker", "model", "denoised", "bench")
HEAVY = {"torch", "numpy", "safetensors", "diffusers"}
# What the commands of all programs share; it imports nothing of ours.
COMMAND_LINE = "denoised.command_line"
# What each package may import of the others; a name with a dot is the one module of it.
ALLOWED = {
    "denoised": {
        "jobs.request",
        "jobs.request_field",
        "jobs.sampling_request",
        "jobs.task_request",
        "jobs.lora",
        "jobs.control",
        "jobs.request_pictures",
    },
    "app": {"jobs", "model.serving.card", COMMAND_LINE},
    "jobs": set[str](),
    "worker": {"jobs", "model", COMMAND_LINE},
    "model": {COMMAND_LINE},
}
# The folders of `model`, each above those it may import.
MODEL_FLOORS = {
    "diffusion": set[str](),
    "networks": {"diffusion"},
    "text": set[str](),
    "checkpoints": {"networks", "diffusion", "text"},
    "hub": {"checkpoints", "networks"},
    "conversion": {"checkpoints", "hub", "networks", "text"},
    "backends": {"networks", "diffusion"},
    "serving": {"checkpoints", "backends", "networks", "diffusion", "text"},
}


def modules(repository: Path, package: str) -> dict[str, Path]:
    """The modules of a package by dotted name, without the `denoised.` that app, jobs, worker and model have before
    them."""
    found = {}
    for path in sorted((repository / package).rglob("*.py")):
        parts = path.relative_to(repository).with_suffix("").parts
        if package == "denoised" and parts[1] in ALLOWED:
            continue  # links to the folders next to it
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def short(name: str) -> str:
    """A module's name as `modules` has it."""
    first, _, rest = name.partition(".")
    return rest if first == "denoised" and rest.partition(".")[0] in ALLOWED else name


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function, for types or in earnest."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            yield from _targets(node.module, [alias.name for alias in node.names])


def _targets(module: str, names: list[str]) -> Iterator[str]:
    """What `from module import names` reads: the module, or modules of a package."""
    for name in names:
        path = Path(__file__).parents[1] / f"{module}.{name}".replace(".", "/")
        yield f"{module}.{name}" if path.with_suffix(".py").exists() else module


@cache
def ours(repository: Path) -> dict[str, set[str]]:
    """All modules of the project with what each imports."""
    return {
        name: {short(imported) for imported in imports(path)}
        for package in PACKAGES
        for name, path in modules(repository, package).items()
    }


def top(name: str) -> str:
    return name.partition(".")[0]


def within(name: str, allowed: set[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def test_each_package_imports_only_what_stands_below_it(repository: Path) -> None:
    upward = {
        (name, other)
        for name, imported in ours(repository).items()
        for other in imported
        if top(name) in ALLOWED and top(other) in ALLOWED and top(other) != top(name)
        if not within(other, ALLOWED[top(name)])
    }
    assert upward == set()


def test_each_folder_of_model_imports_only_what_stands_below_it(repository: Path) -> None:
    upward = {
        (name, other)
        for name, imported in ours(repository).items()
        for other in imported
        if name.startswith("model.") and other.startswith("model.") and other.count(".") > 1
        if (floor := name.split(".")[1]) in MODEL_FLOORS
        if other.split(".")[1] not in {floor, *MODEL_FLOORS[floor]}
    }
    assert upward == set()


def test_what_all_programs_share_imports_none_of_them(repository: Path) -> None:
    graph = ours(repository)
    shared = {name: imported for name, imported in graph.items() if within(name, {COMMAND_LINE})}
    assert len(shared) > 1
    assert {(name, i) for name, imported in shared.items() for i in imported & graph.keys() if i not in shared} == set()


def test_routes_do_not_import_routes(repository: Path) -> None:
    """What several routes share is in a package below them; `app.main` alone names them all."""
    routes = (
        "app.routes",
        "app.compat.openai.routes",
        "app.compat.a1111.routes",
        "app.compat.a1111.list_routes",
    )
    importing = {
        (name, other)
        for name, imported in ours(repository).items()
        for other in imported
        if within(other, set(routes)) and name != "app.main"
    }
    assert importing == set()


def test_only_the_app_knows_apis_of_others(repository: Path) -> None:
    """Errors, documents and routes of our own do not depend on `app.compat`."""
    importing = {
        (name, other)
        for name, imported in ours(repository).items()
        for other in imported
        if within(other, {"app.compat"}) and not within(name, {"app.compat", "app.main"})
    }
    assert importing == set()


def test_no_two_modules_import_each_other(repository: Path) -> None:
    graph = ours(repository)

    def reached(start: str) -> set[str]:
        found, ahead = set[str](), {start}
        while ahead:
            ahead = {other for name in ahead for other in graph.get(name, ()) if other in graph} - found
            found |= ahead
        return found

    assert {name for name in graph if name in reached(name)} == set()


def test_no_way_leads_from_the_front_end_to_torch(repository: Path) -> None:
    graph = ours(repository)
    reached = {name for name in graph if top(name) in ("app", "denoised", "jobs")}
    ahead = set(reached)
    while ahead:
        imported = {other for name in ahead for other in graph[name]}
        ahead = {name for name in graph if name in imported} - reached
        reached |= ahead
    assert "model.serving.card" in reached
    assert not {(name, i) for name in reached for i in graph[name] if top(i) in HEAVY}


def test_the_model_knows_no_server(repository: Path) -> None:
    forbidden = {"redis", "rq", "fastapi", "starlette", "uvicorn", "httpx"}
    for name, imported in ours(repository).items():
        if top(name) == "model":
            assert forbidden.isdisjoint(top(i) for i in imported), name


def test_nobody_needs_the_benchmark(repository: Path) -> None:
    for name, imported in ours(repository).items():
        if top(name) != "bench":
            assert "bench" not in {top(i) for i in imported}, name


def test_the_peers_know_nothing_of_this_project(repository: Path) -> None:
    peers = {name: imported for name, imported in ours(repository).items() if name.startswith("bench.peers")}
    shared = {"bench.peers.pipeline", "bench.peers.network", "bench.peers.text_pipeline"}
    assert len(peers) >= 5
    for name, imported in peers.items():
        assert {i for i in imported if top(i) in PACKAGES} <= shared, name


def test_rq_is_named_in_two_files_only(repository: Path) -> None:
    naming = {name for name, imported in ours(repository).items() if "rq" in {top(i) for i in imported}}
    assert naming == {"app.admission.queue.job_queue", "worker.delivery.rq_worker"}


OF_A_WORKER = {"torch", "numpy", "diffusers"}
SLOW_TO_IMPORT = {"torch", "numpy", "fastapi", "starlette", "pydantic", "redis", "rq", "httpx", "rich", "PIL"}
OF_THE_SERVER = {"torch", "numpy", "fastapi", "starlette", "uvicorn", "pydantic", "redis", "rq", "websockets"}
# What each set of packages is not imported by. One process imports all modules of a row, one after another.
SPARED = [
    (
        OF_A_WORKER,
        [
            "denoised.app.main",
            "denoised.app.launch.cli",
            "denoised.app.launch.serve",
            "denoised.app.launch.http_server",
            "denoised.client",
            "denoised.app.launch.diagnostics",
            "denoised.model.checkpoints.__main__",
            "denoised.model.hub.__main__",
        ],
    ),
    (
        SLOW_TO_IMPORT,
        [
            "denoised",
            "denoised.app.launch.cli",
            "denoised.command_line.console",
            "denoised.command_line.service_options",
        ],
    ),
    (OF_THE_SERVER, ["denoised.client", "denoised.cli.generate", "denoised.cli.listing", "denoised.cli.top"]),
]


def printed(code: str, repository: Path) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(("spared", "names"), SPARED, ids=["front end", "commands", "client"])
def test_programs_import_what_they_need_alone(spared: set[str], names: list[str], repository: Path) -> None:
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    if found := {spared!r} & set(sys.modules):
        sys.exit(print(name, "imports", *sorted(found)))
"""
    assert printed(code, repository) == ""


def test_a_worker_imports_neither_the_compiler_nor_the_hub_to_serve_a_folder(repository: Path) -> None:
    code = """
import sys
from denoised.model.hub.model_sources import resolve_models
from denoised.model.serving.loading import ZOO, load_for_serving
load_for_serving(*resolve_models([str(ZOO / "digits")], lambda: sys.exit("the hub is asked"), "float32"))
print(sorted({"torch._dynamo", "torch._inductor", "sympy", "huggingface_hub.hf_api"} & set(sys.modules)))
"""
    assert printed(code, repository) == "[]"
