"""What the documents say is true: tables are complete, links, files and commands exist. `test_examples.py` runs the
examples."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from denoised.app.admission.quotas import Admission, Load
from denoised.app.admission.validation import choose_card
from denoised.app.http.errors import Problem, TooBusy, store_problem
from denoised.app.launch.cli import cli as serving
from denoised.app.settings import ApiSettings
from denoised.cli.main import cli
from denoised.jobs.errors import StoreFull, StoreUnavailable
from denoised.model.__main__ import app as training
from denoised.model.checkpoints.card_file import CardFile
from denoised.model.conversion.__main__ import cli as converting
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.sampler_descriptions import DESCRIPTIONS
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.hub.__main__ import cli as pulling
from denoised.worker.__main__ import cli as working
from tests import fork_server

ROW = re.compile(r"^\| `((?:DENOISED|REDIS)_[A-Z_]+)` \|(.*)\|$", re.MULTILINE)
FOLDERS = ("app", "bench", "denoised", "docs", "jobs", "model", "ops", "tests", "worker")
# Paths and modules in backticks.
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")
MODULE = re.compile(
    r"`(?:denoised\.)?((?:app|bench|jobs|model|worker|denoised\.(?:cli|client|command_line))(?:\.\w+)+)`"
)


@pytest.fixture(scope="module")
def documents(repository: Path) -> dict[str, str]:
    """Every page by its path."""
    paths = [repository / "README.md", repository / "CHANGELOG.md", *sorted((repository / "docs").glob("*.md"))]
    return {str(path.relative_to(repository)): path.read_text() for path in paths}


@pytest.fixture(scope="module")
def architecture(documents: dict[str, str]) -> str:
    return documents["docs/architecture.md"]


@pytest.fixture(scope="module")
def mathematics(repository: Path) -> str:
    return (repository / "docs/mathematics.md").read_text()


def test_the_command_that_serve_prints_works(service: Any, tmp_path: Path) -> None:
    (line,) = [line for line in service.log.read_text().splitlines() if line.strip().startswith("curl ")]
    subprocess.run(["bash", "-e", "-c", line], cwd=tmp_path, capture_output=True, timeout=180, check=True)
    (made,) = tmp_path.iterdir()
    with Image.open(made) as picture:
        assert picture.format == "PNG"


def test_the_file_map_has_one_line_for_every_folder(documents: dict[str, str], repository: Path) -> None:
    section = documents["README.md"].split("## The code")[1]
    listed = Counter(re.findall(r"^\| `(\w+)/` \|", section, re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
    folders = {line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")}
    assert listed == Counter(folders)


def test_every_folder_of_code_stands_once_in_the_architecture(architecture: str, repository: Path) -> None:
    section = architecture.split("## Folders")[1].split("\n## ")[0]
    listed = Counter(re.findall(r"^\| `(\w+/[\w/]+)/` \|", section, re.MULTILINE))
    folders = {
        str(path.parent.relative_to(repository))
        for package in ("app", "jobs", "worker", "model", "bench")
        for path in (repository / package).rglob("*/__init__.py")
        if len(path.relative_to(repository).parts) > 2
    }
    assert {name: count for name, count in listed.items() if count > 1} == {}
    assert listed.keys() == folders | {
        "app/playground",
        "denoised/client",
        "denoised/cli",
        "denoised/command_line",
        "model/zoo",
    }


def test_every_file_that_a_page_names_exists(documents: dict[str, str], repository: Path) -> None:
    missing = [
        f"{page}: {path}"
        for page, text in documents.items()
        for path in PATH.findall(_without_blocks(text))
        if not (repository / path).exists()
    ]
    assert missing == []


def test_every_module_that_a_page_names_exists(documents: dict[str, str], repository: Path) -> None:
    """`worker.engine.batch` is a file; `model.errors.ModelError` is a name that the file defines."""
    missing = [
        f"{page}: {name}"
        for page, text in documents.items()
        for name in MODULE.findall(_without_blocks(text))
        if not _exists(repository, name) and not name.endswith((".md", ".py"))
    ]
    assert missing == []


def _exists(repository: Path, name: str) -> bool:
    path = repository / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    module, _, attribute = name.rpartition(".")
    files = [(repository / module.replace(".", "/")).with_suffix(".py")]
    files.append(repository / module.replace(".", "/") / "__init__.py")
    defined = rf"^\s*(?:async )?(?:def|class) {attribute}\b|^\s*{attribute}\b"
    return any(file.exists() and re.search(defined, file.read_text(), re.MULTILINE) for file in files)


def test_every_key_in_redis_stands_in_the_table(architecture: str, repository: Path) -> None:
    table = architecture.split("## Keys in Redis")[1].split("## ")[0]
    listed = set(re.findall(r"`denoised:(\w+)", table))
    sources = "".join(
        path.read_text() for folder in ("app", "jobs", "worker") for path in (repository / folder).rglob("*.py")
    )
    assert listed == set(re.findall(r"denoised:(\w+)(?=[:\"\s])", sources))


def _commands() -> dict[str, Any]:
    """Every command of `denoised` and of the programs behind it, by name."""
    commands = dict(typer.main.get_command(cli).commands)  # type: ignore[attr-defined]
    commands |= typer.main.get_command(serving).commands  # type: ignore[attr-defined]
    commands |= dict(typer.main.get_command(training).commands)  # type: ignore[attr-defined]
    commands |= {"worker": typer.main.get_command(working), "pull": typer.main.get_command(pulling)}
    commands["convert"] = typer.main.get_command(converting)
    return {name: command for name, command in commands.items() if not command.hidden}


def _variable(option: Any) -> str | None:
    """The environment variable of an option or argument."""
    in_help = re.search(r"\[env var: (\w+)\]", getattr(option, "help", None) or "")
    return in_help[1] if in_help else option.envvar


def _options() -> dict[str, dict[str, Any]]:
    """Environment variable → command → the option that it sets."""
    found: dict[str, dict[str, Any]] = {}
    for name, command in _commands().items():
        for option in command.params:
            variable = _variable(option)
            if variable is not None:
                found.setdefault(variable, {})[name] = option
    return found


def test_every_option_is_an_environment_variable_too() -> None:
    found = {
        (name, option.opts[0]): _variable(option)
        for name, command in _commands().items()
        for option in command.params
        if option.param_type_name == "option"
    }
    assert len(found) > 100
    assert {option for option, variable in found.items() if variable is None} == set()


def test_every_setting_stands_once_with_its_option_commands_and_default(
    documents: dict[str, str], repository: Path
) -> None:
    rows = [match for text in documents.values() for match in ROW.finditer(text)]
    assert {name: count for name, count in Counter(row[1] for row in rows).items() if count > 1} == {}
    listed = {row[1]: [cell.strip() for cell in row[2].split("|")] for row in rows}
    options = _options()
    composed = set(re.findall(r"\$\{(DENOISED_\w+)", (repository / "docker-compose.yml").read_text()))
    assert (options.keys() | composed) - listed.keys() == set()
    for variable, commands in options.items():
        flag, of, default, _ = listed[variable]
        assert of == ", ".join(sorted(commands, key=of.find)), variable
        for command, option in commands.items():
            assert flag.strip("`") in option.opts, f"{variable} of {command}"
            if option.default not in (None, "", False, True, Path()):
                expected = getattr(option.default, "name", None) or str(option.default).removesuffix(".0")
                assert expected in default, f"{variable} of {command}: {default} for {expected}"


def test_every_setting_that_a_page_names_exists(documents: dict[str, str], repository: Path) -> None:
    sources = "".join(
        (repository / name).read_text() for name in ("docker-compose.yml", "Dockerfile", "app/launch/cli.py")
    )
    known = _options().keys() | set(re.findall(r"DENOISED_[A-Z_]+[A-Z]", sources))
    named = {name: set(re.findall(r"\bDENOISED_[A-Z_]+[A-Z]\b", text)) for name, text in documents.items()}
    assert {name: found - known for name, found in named.items() if found - known} == {}
    assert {row[1] for row in ROW.finditer(documents["docs/settings.md"])} - {"REDIS_URL"} <= known


def test_every_command_and_make_target_that_a_page_names_exists(documents: dict[str, str], repository: Path) -> None:
    text = "\n".join(documents.values())
    verbs = set(re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) - verbs == set()
    commands = set(typer.main.get_command(cli).commands)  # type: ignore[attr-defined]
    named = {word for group in re.findall(r"`denoised ([a-z][a-z|-]*)", text) for word in group.split("|")}
    assert named - commands == set()


def test_every_link_leads_to_a_page_and_a_heading(documents: dict[str, str], repository: Path) -> None:
    dead = []
    for page, text in documents.items():
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", _without_blocks(text)):
            path = ((repository / page).parent / target).resolve() if target else repository / page
            there = path.exists() and (not anchor or anchor in _anchors(path.read_text()))
            dead += [] if there else [f"{page}: {target}#{anchor}"]
    assert dead == []


def _without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_links_to_an_index_of_every_page(documents: dict[str, str]) -> None:
    assert "](docs/index.md)" in documents["README.md"]
    linked = {f"docs/{name}" for name in re.findall(r"\]\((\w[\w-]*\.md)", documents["docs/index.md"])}
    assert linked == {name for name in documents if name.startswith("docs/")} - {"docs/index.md"}


def _json_blocks(text: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def _busy() -> Problem:
    """The refusal of a job when 1,000 jobs are queued."""
    waiting = [Load(str(number), "", 1) for number in range(1000)]
    with pytest.raises(TooBusy) as refused:
        Admission(ApiSettings()).check(Load("new", "", 1), [], {"digits": waiting}, [])
    return refused.value


def _unserved() -> Problem:
    with pytest.raises(Problem) as refused:
        choose_card("digits", [], ["digits"])
    return refused.value


def test_refusals_that_no_example_can_show_equal_those_of_the_code(documents: dict[str, str]) -> None:
    away, full = StoreUnavailable(), StoreFull()
    made = [_busy(), store_problem(away), store_problem(away, "…"), _unserved(), store_problem(full)]
    assert _json_blocks(documents["docs/api.md"]) == [problem.body() for problem in made]


def test_the_model_card_on_the_page_is_valid(documents: dict[str, str]) -> None:
    (card,) = _json_blocks(documents["docs/your-own-checkpoint.md"])
    assert len(CardFile.model_validate(card).labels) == 4


def test_the_api_page_describes_every_sampler(documents: dict[str, str]) -> None:
    table = documents["docs/api.md"].partition("| sampler | what it is good for |")[2].partition("\n\n")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)) == DESCRIPTIONS
    assert list(DESCRIPTIONS) == list(SAMPLERS)


def test_every_test_that_the_mathematics_names_exists(mathematics: str, repository: Path) -> None:
    named = set(re.findall(r"`(\w+\.py::\w+)`", mathematics))
    assert len(named) > 60
    there = {
        f"{path.name}::{name}"
        for path in (repository / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), flags=re.MULTILINE)
    }
    assert named - there == set()


def test_the_mathematics_lists_every_sampler_with_its_evaluations_and_registers(mathematics: str) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| ([^|]+) \| (\d) \| (?:discrete|ratio|midpoint|solver|distilled) \|$",
        mathematics,
        re.MULTILINE,
    )
    found = {name: (evaluations, int(registers)) for name, evaluations, registers in rows}
    stages = {1: "N", 2: "2·N − 1", 5: "5·N − 4"}
    plans = {name: compile_plan(name, NoiseSchedule.from_name("linear"), 10, Grid()) for name in SAMPLERS}
    extra = {0: "", 1: " + 1"}
    assert found == {
        name: (stages[SAMPLERS[name].stages] + extra[SAMPLERS[name].extra], plan.registers)
        for name, plan in plans.items()
    }


def test_the_mathematics_lists_every_trap_that_a_test_cites(mathematics: str, repository: Path) -> None:
    numbers = {
        int(number) for number in re.findall(r"^\| (\d+) \|", mathematics.split("## Known traps")[1], re.MULTILINE)
    }
    cited = set()
    for path in (repository / "tests").rglob("test_*.py"):
        for words in re.findall(r"\btraps? (\d+(?:(?:, | and |–)\d+)*)", path.read_text()):
            for part in re.split(", | and ", words):
                ends = [int(number) for number in part.split("–")]
                cited |= set(range(ends[0], ends[-1] + 1))
    assert len(cited) > 25
    assert cited - numbers == set()


def test_the_worked_plan_of_the_mathematics_equals_the_compiled_plan(mathematics: str) -> None:
    plan = compile_plan("ddim", NoiseSchedule.from_name("linear"), 2, Grid("trailing"))
    rows = re.findall(
        r"^\| [12] \| (.*) \|$", mathematics.split("**DDIM as a table.**")[1].split("**All")[0], re.MULTILINE
    )
    found = [[float(value) for value in row.split(" | ")] for row in rows]
    levels = zip(plan.t, plan.alpha, plan.sigma, plan.matrices[:, 0], strict=True)
    assert found == [pytest.approx([t, alpha, sigma, *matrix], abs=5e-7) for t, alpha, sigma, matrix in levels]


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["api"],
        ["worker"],
        ["train"],
        ["train-text"],
        ["fine-tune"],
        ["train-features"],
        ["evaluate"],
        ["likelihood"],
        ["generate"],
        ["verify"],
        [],
    ],
)
def test_every_command_has_help_that_shows_its_variables_in_full(command: list[str]) -> None:
    code, text = _help(command)
    assert code == 0, text
    assert "Usage" in text
    for name in command:
        variables = {_variable(option) for option in _commands()[name].params} - {None}
        assert variables - set(re.findall(r"\w+", text)) == set()


def _help(command: list[str]) -> tuple[int, str]:
    """Exit code and text of `denoised COMMAND --help` on 80 columns: of a process for one command of each program, of
    the program in this process for the others."""
    narrow = {"COLUMNS": "80"}
    for program in (serving, training):
        if set(command) & _names(program) - {"serve", "train"}:
            shown = CliRunner().invoke(program, [*command, "--help"], env=narrow)
            return shown.exit_code, shown.output
    line = [sys.executable, "-m", "denoised", *command, "--help"]
    done = fork_server.run(line, env=os.environ | narrow, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout


def _names(program: typer.Typer) -> set[str]:
    return set(typer.main.get_command(program).commands)  # type: ignore[attr-defined]
