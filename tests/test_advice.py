"""Messages name only options, commands and variables that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from denoised.app.launch.cli import cli as server
from denoised.cli.main import cli as client
from denoised.model.__main__ import app as model
from denoised.model.conversion.__main__ import cli as conversion
from denoised.worker.__main__ import cli as worker

FOLDERS = ("denoised/client", "denoised/cli", "app", "jobs", "worker", "model")
OTHERS = {"--local-dir", "--name", "--prefix"}  # of hf, a placeholder, of npm
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"(?:`|')denoised ([a-z-]+)")
VARIABLE = re.compile(r"DENOISED_[A-Z_]*[A-Z]")


def commands() -> Iterator[click.Command]:
    """Every command of every program."""
    for program in (server, client, model, conversion, worker):
        top = typer.main.get_command(program)
        yield top
        yield from getattr(top, "commands", {}).values()


@pytest.fixture(scope="module")
def options() -> set[str]:
    parameters = [parameter for command in commands() for parameter in command.params]
    return {name for each in parameters for name in (*each.opts, *each.secondary_opts)} | OTHERS | {"--help"}


@pytest.fixture(scope="module")
def variables(repository: Path) -> set[str]:
    parameters = [parameter for command in commands() for parameter in command.params]
    names = [each.envvar for each in parameters if each.envvar]
    flat = {name for each in names for name in ([each] if isinstance(each, str) else each)}
    return flat | set(VARIABLE.findall((repository / "docs/settings.md").read_text()))


def texts(repository: Path) -> Iterator[tuple[Path, str]]:
    """Every string in the code, except in commands that the code itself runs."""
    for folder in FOLDERS:
        for path in sorted((repository / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                    yield path, node.value


def test_every_option_in_a_message_exists(repository: Path, options: set[str]) -> None:
    named = {(path.name, option) for path, text in texts(repository) for option in OPTION.findall(text)}
    assert len(named) > 20
    assert {pair for pair in named if pair[1] not in options} == set()


def test_every_command_in_a_message_exists(repository: Path) -> None:
    known = {command.name for command in commands()}
    named = {(path.name, command) for path, text in texts(repository) for command in COMMAND.findall(text)}
    assert len(named) > 5
    assert {pair for pair in named if pair[1] not in known} == set()


def test_every_variable_in_a_message_exists(repository: Path, variables: set[str]) -> None:
    named = {(path.name, name) for path, text in texts(repository) for name in VARIABLE.findall(text)}
    assert {pair for pair in named if pair[1] not in variables | {"DENOISED_NAME"}} == set()


def test_an_option_in_a_message_of_the_server_is_one_of_its_own(repository: Path) -> None:
    """`serve` must not advise an option that only `train` has."""
    own = {
        name
        for command in typer.main.get_command(server).commands.values()
        for each in command.params
        for name in each.opts
    }  # type: ignore[attr-defined]
    own |= {"--data-dir", "--help"}
    for path, text in texts(repository):
        if path.is_relative_to(repository / "app/launch"):
            assert {option for option in OPTION.findall(text) if option not in own} == set(), path
