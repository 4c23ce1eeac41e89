"""Programs under measurement: really held still, really gone afterwards."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.programs import PROC, Program, answers, command_line, family, free_port, resident_bytes

# A parent and a child in a session of its own, as `denoised serve` has them; both count in files.
COUNT = "import sys, time\nk = 0\nwhile True: k += 1; open(sys.argv[1], 'w').write(str(k)); time.sleep(0.01)"
PARENT = (
    "import subprocess, sys\n"
    f"code = {COUNT!r}\n"
    "subprocess.Popen([sys.executable, '-c', code, sys.argv[2]], start_new_session=True)\n"
    "exec(code)"
)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def counters(folder: Path) -> tuple[str, str]:
    return (folder / "parent").read_text(), (folder / "child").read_text()


@pytest.fixture
def counting(tmp_path: Path) -> Program:
    command = [sys.executable, "-c", PARENT, tmp_path / "parent", tmp_path / "child"]
    program = Program.start("counting", command, tmp_path / "log")
    wait_for(lambda: (tmp_path / "parent").exists() and (tmp_path / "child").exists())
    return program


def test_a_paused_program_and_its_children_do_nothing_until_they_are_resumed(counting: Program, tmp_path: Path) -> None:
    counting.pause()
    time.sleep(0.1)
    before = counters(tmp_path)
    time.sleep(0.3)
    assert counters(tmp_path) == before
    counting.resume()
    wait_for(lambda: all(a != b for a, b in zip(counters(tmp_path), before, strict=True)))
    counting.stop()


def test_a_stopped_program_leaves_nobody_behind_even_when_it_was_paused(counting: Program) -> None:
    members = family(counting.process.pid)
    assert len(members) == 2
    counting.pause()
    counting.stop()
    wait_for(lambda: not any(command_line(member.pid) for member in members))


def test_a_program_that_ends_instead_of_being_ready_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    program = Program.start("short", [sys.executable, "-c", "raise SystemExit('no luck today')"], tmp_path / "log")
    with pytest.raises(BenchError, match="short ended with exit code 1: no luck today"):
        program.wait_until(lambda: False, seconds=20)


def test_a_program_that_is_not_ready_in_time_is_an_error(counting: Program) -> None:
    with pytest.raises(BenchError, match=r"counting is not ready after 0.2 s: it said nothing"):
        counting.wait_until(lambda: False, seconds=0.2)
    counting.stop()


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nobody does not start"):
        Program.start("nobody", [tmp_path / "nothing"], tmp_path / "log")


def test_a_program_that_talks_is_heard_until_it_ends(tmp_path: Path) -> None:
    code = "print(input() + '!', flush=True)"
    program = Program.start("echo", [sys.executable, "-c", code], tmp_path / "log", talks=True)
    program.tell("hello")
    assert program.hear() == "hello!\n"
    with pytest.raises(BenchError, match="echo ended"):
        program.hear()
    program.stop()


def test_a_program_that_says_nothing_in_time_is_an_error(tmp_path: Path) -> None:
    program = Program.start("mute", [sys.executable, "-c", "input()"], tmp_path / "log", talks=True)
    with pytest.raises(BenchError, match=r"mute said nothing for 0.2 s"):
        program.hear(seconds=0.2)
    program.stop()


@pytest.mark.skipif(not PROC.exists() or shutil.which("ps") is None, reason="needs both /proc and ps")
def test_proc_and_ps_tell_of_the_same_processes(counting: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = counting.process.pid
    told = [member.pid for member in family(pid)], command_line(pid).split()[:2]
    monkeypatch.setattr("bench.programs.PROC", Path("/nowhere"))
    assert ([member.pid for member in family(pid)], command_line(pid).split()[:2]) == told
    assert len(told[0]) == 2
    counting.stop()


def test_the_memory_of_a_process_is_told() -> None:
    before = resident_bytes(os.getpid())
    block = bytearray(os.urandom(1)) * 50_000_000
    assert resident_bytes(os.getpid()) - before > 40_000_000
    assert len(block) == 50_000_000


def test_nobody_answers_on_a_free_port() -> None:
    assert not answers(f"http://127.0.0.1:{free_port()}/health")
