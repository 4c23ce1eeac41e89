"""The dependencies in pyproject.toml: extras are complete, agree with requirements.lock, and missing ones are named."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.testing import CliRunner

import denoised
from denoised import client
from denoised.cli import main

# What each folder may import: the packages of the client, and those of one extra.
EXTRAS = {"denoised/client": None, "denoised/cli": None, "app": "server", "jobs": "server", "worker": "worker"}
EXTRAS |= {"model": "train"}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return dict(tomllib.loads((repository / "pyproject.toml").read_text())["project"])


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def imported_packages(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, top-level module) of each import of a package that is neither ours nor of the standard library."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "denoised":
                    yield str(path), top


@pytest.mark.parametrize(("folder", "extra"), EXTRAS.items())
def test_every_package_that_is_imported_is_a_dependency(
    folder: str, extra: str | None, project: dict[str, Any], repository: Path
) -> None:
    declared = names(project["dependencies"])
    if extra is not None:
        declared |= names(project["optional-dependencies"][extra])
    # starlette and anyio come with fastapi and httpx, h11 with uvicorn, whose versions decide theirs.
    declared |= {"starlette", "anyio", "h11"} if extra == "server" else set()
    # Optional in options.py: typer itself requires it.
    declared |= {"pydantic"} if extra is None else set()
    distributions = packages_distributions()
    undeclared = {
        (path, module)
        for path, module in imported_packages(repository / folder)
        if not {canonicalize_name(name) for name in distributions[module]} & declared
    }
    assert undeclared == set()


def test_the_client_needs_four_packages(project: dict[str, Any]) -> None:
    assert names(project["dependencies"]) == {"httpx", "pillow", "rich", "typer"}


def test_every_range_contains_the_locked_version(project: dict[str, Any], repository: Path) -> None:
    lines = (repository / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    locked = {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins}
    asked = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    assert len(asked) > 30
    for text in asked:
        requirement = Requirement(text)
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_torch_has_one_version(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    pins = {text for extra in ("worker", "train") for text in extras[extra] if text.startswith("torch=")}
    assert len(pins) == 1
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", pins.pop())


def test_the_modules_that_a_command_checks_are_those_of_its_extra(project: dict[str, Any]) -> None:
    distributions = packages_distributions()
    for extra, modules in main.MODULES.items():
        provided = {canonicalize_name(distributions[module][0]) for module in modules}
        optional = {"uvloop"}  # not on Windows
        assert provided == names(project["optional-dependencies"][extra]) - optional, extra


@pytest.mark.parametrize("command", [program[0] for program in main.PROGRAMS])
def test_a_command_whose_extra_is_missing_names_it_in_one_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "find_spec", lambda module: None)
    monkeypatch.setattr(main.os, "execve", lambda *arguments: pytest.fail("the program was started"))
    outcome = CliRunner().invoke(main.cli, [command, "--help"])
    extras = {program[0]: program[2] for program in main.PROGRAMS}[command]
    assert outcome.exit_code == 1
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith(f"denoised {command}: ")
    assert outcome.stderr.endswith(f" is not installed: run pip install 'denoised[{','.join(extras)}]'\n")


def test_serving_names_only_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "find_spec", lambda module: None if module == "torch" else main)
    outcome = CliRunner().invoke(main.cli, ["serve"])
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert outcome.stderr == "denoised serve: torch is not installed: run pip install 'denoised[worker]'\n"


def test_every_program_that_we_start_ignores_modules_in_the_working_directory(repository: Path) -> None:
    started = 0
    for folder in ("denoised/client", "denoised/cli", "app", "jobs", "worker", "model"):
        for path in (repository / folder).rglob("*.py"):
            for command in re.findall(r"\[sys\.executable, [^]]*", path.read_text()):
                assert command.startswith('[sys.executable, "-P", "-m", '), f"{path}: {command}"
                started += 1
    assert started >= 4


def test_all_names_of_the_client_are_importable_from_the_package() -> None:
    assert denoised.__all__ == client.__all__
    for name in denoised.__all__:
        assert getattr(denoised, name) is getattr(client, name)
    with pytest.raises(AttributeError, match="has no attribute 'Server'"):
        denoised.Server  # noqa: B018
