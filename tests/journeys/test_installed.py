"""The wheel, installed with the client's dependencies alone, in the folder of a project with modules of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.journeys.conftest import GARMENTS

TIMEOUT = 300.0  # seconds; exceeded only if something hangs
CLIENT = ("httpx", "pillow", "rich", "typer")
LINKED = ("app", "jobs", "worker", "model")  # top-level folders that are installed below `denoised`
THEIRS = ("app", "worker", "model", "jobs")  # modules of another project


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel. bin: its folder of programs."""

    bin: Path

    def run(self, *command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=folder,
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )


def _build_wheel(source: Path, out: Path) -> Path:
    """The wheel of a source tree, built without a network by the hatchling that is installed here."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", str(out), str(source)], timeout=TIMEOUT, check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def _with_dependencies(name: str) -> Iterator[str]:
    """A distribution and all that it needs here."""
    yield name
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from _with_dependencies(requirement.name)


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build_wheel(repository, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The dependencies are copied from this environment, so that no package index is needed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], timeout=TIMEOUT, check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in {found for each in CLIENT for found in _with_dependencies(each)}:
        for file in distribution(name).files or []:
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file():
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, packages / file)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--python",
        str(folder / "bin/python"),
    ]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], timeout=TIMEOUT, check=True)
    return Installation(folder / "bin")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Another project's folder: `app/`, `worker/`, `model.py` and `jobs.py`."""
    for name in ("app", "worker"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OWNER = 'this project'\n")
    for name in ("model", "jobs"):
        (tmp_path / f"{name}.py").write_text("OWNER = 'this project'\n")
    return tmp_path


@pytest.fixture
def hostile(project: Path) -> Path:
    """The same with modules that have the names of installed ones, and that end every program that imports them."""
    for name in ("denoised", "redis", "rq", "torch", "numpy", "fastapi", "uvicorn", "httpx", "rich", "typer", "PIL"):
        (project / f"{name}.py").write_text(f"raise SystemExit('the {name} of the working directory was imported')\n")
    return project


def test_the_wheel_contains_one_package_with_every_file(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    assert {name.split("/")[0].partition("-")[0] for name in inside} == {"denoised"}
    for folder in LINKED:
        files = [
            path for path in (repository / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
        assert files
        for path in files:
            assert inside[f"denoised/{path.relative_to(repository)}"] == path.read_bytes()
    for part in ("app/playground/index.html", "model/zoo/digits/unet/diffusion_pytorch_model.safetensors", "py.typed"):
        assert f"denoised/{part}" in inside
    assert any(name.endswith(".c") for name in inside)


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(wheel: Path, repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=repository, stdout=subprocess.DEVNULL, timeout=TIMEOUT, check=True)
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        archive.extractall(tmp_path, filter="data")
    again = _build_wheel(tmp_path / source.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as two:
        assert {name: one.getinfo(name).CRC for name in one.namelist()} == {
            name: two.getinfo(name).CRC for name in two.namelist()
        }


def test_a_project_with_modules_of_these_names_uses_the_client(
    installation: Installation, project: Path, service: Any
) -> None:
    (project / "program.py").write_text(
        f"import {', '.join(THEIRS)}\n"
        "from denoised import Client\n"
        f"assert all(module.OWNER == 'this project' for module in ({', '.join(THEIRS)}))\n"
        f"with Client({service.url!r}) as client:\n"
        "    (image,) = client.generate(label='sneaker', seed=7, steps=3)\n"
        "    image.save('sneaker.png')\n"
    )
    done = installation.run("python", "program.py", folder=project)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(project / "sneaker.png") as image:
        assert (image.format, image.size) == ("PNG", (28, 28))


@pytest.mark.parametrize("command", [["denoised"], ["python", "-P", "-m", "denoised"]], ids=["script", "module"])
def test_the_terminal_command_makes_a_picture_there(
    command: list[str], installation: Installation, hostile: Path, service: Any
) -> None:
    request = ["generate", "--url", service.url, "--label", "bag", "--seed", "5", "--steps", "3"]
    done = installation.run(*command, *request, folder=hostile)
    assert (done.returncode, done.stdout) == (0, "bag-5.png\n"), done.stderr
    with Image.open(hostile / "bag-5.png") as image:
        assert image.format == "PNG"


def test_a_module_beside_the_program_is_not_taken_for_a_dependency(
    installation: Installation, hostile: Path, service: Any
) -> None:
    """`python -m` puts the working directory first on the path."""
    (hostile / "denoised.py").unlink()
    done = installation.run("python", "-m", "denoised", "models", "--url", service.url, folder=hostile)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "extras"),
    [("serve", "server,worker"), ("api", "server"), ("worker", "worker"), ("doctor", "server"), ("train", "train")],
)
def test_a_command_that_needs_more_says_what_to_install(
    command: str, extras: str, installation: Installation, project: Path
) -> None:
    done = installation.run("denoised", command, folder=project)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"run pip install 'denoised[{extras}]'\n")


def test_serving_in_such_a_folder_runs_our_programs(
    start_service: Callable[..., Any], hostile: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    service = start_service(tmp_path_factory.mktemp("hostile") / "data", folder=hostile)
    with service.client() as client:
        job = client.post("/generate", json={**GARMENTS, "steps": 2}, headers={"Prefer": "wait=60"}).json()
    assert job["status"] == "succeeded"
    assert "was imported" not in service.log.read_text()
    assert service.stop() == 0
