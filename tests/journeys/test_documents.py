"""What the README says is true: its examples run, its tables are whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.grids import Grid
from model.noise import NoiseSchedule
from model.samplers import SAMPLERS, compile_plan

DEFAULT_URL = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


@pytest.fixture(scope="module")
def mathematics(repository: Path) -> str:
    return (repository / "docs/mathematics.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def _example(readme: str, language: str, word: str) -> str:
    (block,) = [block for block in _blocks(readme, language) if word in block]
    return block


def _run(command: list[str], folder: Path, service: Any) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DENOISED_URL": service.url,
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _at(block: str, service: Any) -> str:
    return block.replace(DEFAULT_URL, service.url.removeprefix("http://"))


def test_the_curl_example_writes_a_picture(readme: str, service: Any, tmp_path: Path) -> None:
    _run(["bash", "-e", "-c", _at(_example(readme, "sh", "curl"), service)], tmp_path, service)
    with Image.open(tmp_path / "sneaker.png") as picture:
        assert picture.size == (28, 28)


def test_the_example_of_verifying_finds_the_bytes_equal(readme: str, service: Any, tmp_path: Path) -> None:
    example = _at(_example(readme, "sh", "curl"), service) + _example(readme, "sh", "denoised verify")
    printed = _run(["bash", "-e", "-c", example], tmp_path, service)
    assert printed == "sneaker.png: made again, the bytes are equal (fashion-mnist, sneaker, seed 7)\n"


def test_the_command_line_example_writes_its_pictures(readme: str, service: Any, tmp_path: Path) -> None:
    printed = _run(["bash", "-e", "-c", _example(readme, "sh", "denoised generate")], tmp_path, service)
    files = sorted((tmp_path / "boots").glob("*.png"))
    assert len(files) == 4
    assert [line.split("/")[-1] for line in printed.splitlines()] == [file.name for file in files]


def test_the_python_example_writes_its_pictures(readme: str, service: Any, tmp_path: Path) -> None:
    printed = _run([sys.executable, "-c", _at(_example(readme, "python", "httpx"), service)], tmp_path, service)
    assert sorted(file.name for file in tmp_path.glob("*.png")) == [f"dress-{seed}.png" for seed in (1, 2, 3, 4)]
    assert printed.count("bytes") == 4


def test_the_socket_example_prints_progress_and_writes_frames(readme: str, service: Any, tmp_path: Path) -> None:
    printed = _run([sys.executable, "-c", _at(_example(readme, "python", "websockets"), service)], tmp_path, service)
    assert printed.splitlines()[:2] == ["queued", "started"]
    assert printed.splitlines()[-2:] == ["image", "succeeded"]
    assert re.search(r"^step \d+ of \d+$", printed, flags=re.MULTILINE)
    for kind in ("xt", "x0"):
        assert len(list(tmp_path.glob(f"frame-{kind}-*.png"))) >= 5


def test_the_shell_examples_of_the_client_page_run_one_after_another(
    repository: Path, service: Any, tmp_path: Path
) -> None:
    page = (repository / "docs/client.md").read_text()
    printed = _run(["bash", "-e", "-o", "pipefail", "-c", "".join(_blocks(page, "sh"))], tmp_path, service)
    lines = printed.splitlines()
    assert lines[:2] == ["shoes/sneaker-7.png", "shoes/sneaker-8.png"]
    assert re.fullmatch(r"[0-9a-f]{64}", lines[-2])
    assert re.fullmatch(r"[0-9a-f]{32}", lines[-1])


def test_the_python_examples_of_the_client_page_run(repository: Path, service: Any, tmp_path: Path) -> None:
    page = (repository / "docs/client.md").read_text()
    blocks = [f"{block}\nprint('--')\n" for block in _blocks(page, "python")]
    told = _run([sys.executable, "-c", "".join(blocks)], tmp_path, service).split("--\n")
    pictures, watched, stepwise, awaited, _ = told
    assert pictures.count("(28, 28)") == 2
    assert re.search(r"^step 12 of 12$", watched, flags=re.MULTILINE)
    assert len(list(tmp_path.glob("x0-*.png"))) == 3
    assert stepwise.splitlines()[1] == "True"
    assert stepwise.splitlines()[3].startswith("409 ")
    assert "spaceship" in stepwise.splitlines()[4]
    assert awaited.splitlines()[0] == "1 1"
    assert (tmp_path / "coat.webp").stat().st_size > 0


def test_the_line_that_serve_prints_can_be_pasted(service: Any, tmp_path: Path) -> None:
    (line,) = [line for line in service.log.read_text().splitlines() if line.strip().startswith("curl ")]
    _run(["bash", "-e", "-c", line], tmp_path, service)
    with Image.open(tmp_path / "sneaker.png") as picture:
        assert picture.format == "PNG"


def test_the_file_map_has_one_line_for_every_file(readme: str, repository: Path) -> None:
    section = readme.split("## Files")[1].split("## ")[0]
    for folder in ("model", "worker", "app", "bench", "bench/peers"):
        part = section.split(f"**`{folder}/`**")[1].split("| **`")[0]
        listed = set(re.findall(r"`(\w+\.py)`", part))
        there = {path.name for path in (repository / folder).glob("*.py")} - {"__init__.py"}
        assert listed == there, folder


def test_every_setting_stands_in_the_readme(readme: str, repository: Path) -> None:
    sources = "".join(path.read_text() for folder in ("app", "worker") for path in (repository / folder).rglob("*.py"))
    used = set(re.findall(r"DENOISED_[A-Z_]+[A-Z]", sources))
    used |= {f"DENOISED_{name}" for name in re.findall(r'\benv\(\s*"([A-Z_]+)"', sources)}
    section = readme.split("## Settings")[1].split("## Files")[0]
    assert used - set(re.findall(r"DENOISED_[A-Z_]+", section)) == set()


def test_nothing_in_the_readme_points_nowhere(readme: str, repository: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (repository / target).exists(), target


def test_every_test_that_the_mathematics_names_exists(mathematics: str, repository: Path) -> None:
    named = set(re.findall(r"`(\w+\.py::\w+)`", mathematics))
    assert len(named) > 60
    there = {
        f"{path.name}::{name}"
        for path in (repository / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), flags=re.MULTILINE)
    }
    assert named - there == set()


def test_every_sampler_stands_in_the_mathematics_with_its_evaluations_and_registers(mathematics: str) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| ([^|]+) \| (\d) \| (?:discrete|ratio|halved|solver) \|$", mathematics, re.MULTILINE
    )
    found = {name: (evaluations, int(registers)) for name, evaluations, registers in rows}
    stages = {1: "N", 2: "2·N − 1", 5: "5·N − 4"}
    plans = {name: compile_plan(name, NoiseSchedule.named("linear"), 10, Grid()) for name in SAMPLERS}
    assert found == {name: (stages[SAMPLERS[name].stages], plan.registers) for name, plan in plans.items()}


def test_every_trap_that_a_test_cites_stands_in_the_mathematics(mathematics: str, repository: Path) -> None:
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


def test_the_worked_plan_of_the_mathematics_is_the_one_that_is_compiled(mathematics: str) -> None:
    plan = compile_plan("ddim", NoiseSchedule.named("linear"), 2, Grid("trailing"))
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
        ["train-features"],
        ["evaluate"],
        ["likelihood"],
        ["generate"],
        ["verify"],
        [],
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", *command, "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
