"""The commands in environments that somebody else has set up: no home, other encodings, Kubernetes, odd paths."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fork_server

Run = Callable[..., subprocess.CompletedProcess[str]]
# Imported by every Python process that finds it: nobody is in the password database.
NO_USER = """
import pwd
def unknown(*_): raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = unknown
"""
SHADOWS = (
    "app",
    "worker",
    "model",
    "jobs",
    "redis",
    "typer",
    "rich",
    "click",
    "torch",
    "numpy",
    "fastapi",
    "rq",
    "httpx",
)


@pytest.fixture
def run(tmp_path: Path, repository: Path) -> Run:
    """`run("key", VARIABLE=…)` runs a command from an empty folder; None removes a variable."""
    (tmp_path / "here").mkdir()

    def run(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        given = {**os.environ, "PYTHONPATH": str(repository), **changes}
        environment = {name: value for name, value in given.items() if value is not None}
        command = [sys.executable, "-m", "denoised", *arguments]
        return subprocess.run(
            command,
            env=environment,
            cwd=tmp_path / "here",
            capture_output=True,
            timeout=120,
            check=False,
            encoding="latin-1",
        )

    return run


def test_kubernetes_variables_are_explained_in_one_line(run: Run) -> None:
    """vllm-project/vllm#15613: a Service named like the program sets PROGRAM_PORT=tcp://…"""
    for command in ("serve", "api", "doctor"):
        done = run(command, DENOISED_PORT="tcp://10.96.0.7:8000")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"denoised {command}: DENOISED_PORT=tcp://10.96.0.7:8000 comes from Kubernetes")
        assert "enableServiceLinks: false" in done.stderr
        assert done.stderr.count("\n") == 1


def forked(command: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A command whose start is not what the test is about."""
    command_line = [sys.executable, "-m", "denoised", command]
    return fork_server.run(command_line, env=os.environ | changes, capture_output=True, timeout=120, text=True)


@pytest.mark.parametrize("command", ["api", "worker"])
def test_a_variable_that_is_no_number_is_named_with_its_value(command: str) -> None:
    done = forked(command, DENOISED_RESULT_TTL="a day")
    assert done.returncode == 2
    assert "DENOISED_RESULT_TTL" in done.stderr
    assert "'a day'" in done.stderr


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("worker", "DENOISED_LEASE", "inf"),
        ("worker", "DENOISED_LEASE", "nan"),
        ("worker", "DENOISED_JOB_TIMEOUT", "1e300"),
        ("worker", "DENOISED_RESULT_TTL", "99999999999999"),
        ("worker", "DENOISED_THREADS", "1000000000"),
        ("api", "DENOISED_RESULT_TTL", "99999999999999"),
        ("api", "DENOISED_MAX_WAIT", "inf"),
        ("api", "DENOISED_MAX_ATTEMPTS", "9007199254740993"),
    ],
)
def test_a_number_beyond_what_redis_or_the_machine_takes_is_refused(command: str, name: str, value: str) -> None:
    """A time to live of 10^14 s fails every end of a job; a billion threads end the process in libgomp."""
    done = forked(command, **{name: value})
    assert done.returncode == 2
    assert name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict"])
def test_printing_beyond_the_encoding_of_the_terminal_is_not_fatal(run: Run, encoding: str) -> None:
    """web2py/py4web#679, invoke-ai/InvokeAI#3191."""
    for arguments in (("generate", "--help"), ("api", "--help")):
        done = run(*arguments, PYTHONIOENCODING=encoding)
        assert "Traceback" not in done.stderr, done.stderr
        assert "UnicodeEncodeError" not in done.stderr
    assert "\\u0431" in run("key", "ботинок", PYTHONIOENCODING=encoding).stderr


def test_a_user_without_home_and_passwd_entry_is_asked_for_a_folder(run: Run, tmp_path: Path, repository: Path) -> None:
    """apple/containerization#103, h2oai/h2o-llmstudio PR#974."""
    (tmp_path / "sitecustomize.py").write_text(NO_USER)
    nobody = {"HOME": None, "XDG_DATA_HOME": None, "XDG_CACHE_HOME": None}
    path = f"{tmp_path}{os.pathsep}{repository}"
    done = run("serve", PYTHONPATH=path, **nobody)
    assert done.returncode == 1
    assert done.stderr == "denoised serve: this user has no home folder: choose a folder with --data-dir\n"
    assert run("key", PYTHONPATH=path, **nobody).returncode == 0


@pytest.mark.parametrize("home", [None, "", "/proc/none", "relative"])
def test_without_a_home_kernels_are_not_cached(
    home: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from denoised.model.backends.native.compiler import cache_folder

    def unknown(*_: object) -> None:
        raise KeyError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert cache_folder() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", [pytest.param("", marks=pytest.mark.slow), os.pathsep])
def test_modules_in_the_working_directory_are_not_imported(
    run: Run, tmp_path: Path, repository: Path, prefix: str
) -> None:
    """Comfy-Org/ComfyUI#10031. An empty entry in PYTHONPATH means the working directory."""
    for name in SHADOWS:
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('shadowed')")
    path = f"{prefix}{repository}"
    assert run("key", PYTHONPATH=path).returncode == 0
    refused = run("worker", "--redis-url", "redis://127.0.0.1:9", PYTHONPATH=path)
    last = refused.stderr.splitlines()[-1]  # without a C compiler, a warning comes before
    assert last.startswith("denoised worker: Redis does not answer")
    if not prefix:  # the same start of another program
        refused = run("train", "--data", "none", "--out", "run", PYTHONPATH=path)
        assert refused.stderr.startswith("denoised train: no dataset at none")
