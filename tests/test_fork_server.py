"""`tests.fork_server` starts programs that behave as those of `subprocess`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fork_server

DENOISED = [sys.executable, "-m", "denoised"]
WAITING = [sys.executable, "-m", "tests.fake_workers", "."]  # reads lines from stdin

pytestmark = pytest.mark.skipif(
    not fork_server.can_fork(), reason="programs are forked on Linux with OMP_NUM_THREADS=1"
)


def test_a_forked_program_is_a_child_with_the_same_command_line(repository: Path) -> None:
    with fork_server.Popen(WAITING, cwd=repository, stdin=subprocess.PIPE) as process:
        listing = subprocess.run(
            ["ps", "-o", "ppid=,args=", "-p", str(process.pid)], capture_output=True, text=True, check=True
        )
        parent, *command = listing.stdout.split()
        process.kill()
    assert int(parent) == os.getpid()
    assert command == WAITING
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("arguments", [["models"], ["worker", "--threads", "x"]])
def test_output_and_exit_code_are_those_of_a_program_that_is_started(arguments: list[str], tmp_path: Path) -> None:
    options = {"cwd": tmp_path, "env": os.environ | {"DENOISED_URL": "http://127.0.0.1:9"}}
    runs = [run([*DENOISED, *arguments], **options) for run in (subprocess_run, forked_run)]
    assert runs[0] == runs[1]


def subprocess_run(command: list[str], **options: object) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr


def forked_run(command: list[str], **options: object) -> tuple[int, str, str]:
    done = fork_server.run(command, capture_output=True, text=True, **options)
    return done.returncode, done.stdout, done.stderr


def test_what_changes_an_import_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(fork_server.ForkServer, "fork", refuse)
    for env in (os.environ | {"ATEN_CPU_CAPABILITY": "default"}, os.environ | {"OMP_NUM_THREADS": "7"}):
        assert fork_server.run([*DENOISED, "--version"], env=env, capture_output=True).returncode == 0
    assert fork_server.run([sys.executable, "-c", ""]).returncode == 0
    with pytest.raises(AssertionError):
        fork_server.run([*DENOISED, "--version"])
