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

DEFAULT_URL = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


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


def test_the_line_that_serve_prints_can_be_pasted(service: Any, tmp_path: Path) -> None:
    (line,) = [line for line in service.log.read_text().splitlines() if line.strip().startswith("curl ")]
    _run(["bash", "-e", "-c", line], tmp_path, service)
    with Image.open(tmp_path / "sneaker.png") as picture:
        assert picture.format == "PNG"


def test_the_file_map_has_one_line_for_every_file(readme: str, repository: Path) -> None:
    section = readme.split("## Files")[1].split("## ")[0]
    for folder in ("model", "worker", "app"):
        part = section.split(f"**`{folder}/`**")[1].split("| **`")[0]
        listed = set(re.findall(r"`(\w+\.py)`", part))
        there = {path.name for path in (repository / folder).glob("*.py")} - {"__init__.py"}
        assert listed == there, folder


def test_every_setting_stands_in_the_readme(readme: str, repository: Path) -> None:
    sources = "".join(path.read_text() for folder in ("app", "worker") for path in (repository / folder).glob("*.py"))
    used = set(re.findall(r"DENOISED_[A-Z_]+[A-Z]", sources))
    used |= {f"DENOISED_{name}" for name in re.findall(r'_env\(\s*"([A-Z_]+)"', sources)}
    section = readme.split("## Settings")[1].split("## Files")[0]
    assert used - set(re.findall(r"DENOISED_[A-Z_]+", section)) == set()


def test_nothing_in_the_readme_points_nowhere(readme: str, repository: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (repository / target).exists(), target


@pytest.mark.parametrize(
    "command",
    [["serve"], ["api"], ["worker"], ["train"], ["train-features"], ["evaluate"], ["likelihood"], ["generate"], []],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", *command, "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
