"""Measured programs are really suspended, and really gone afterward."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.load.processes import PROC, MeasuredProgram, answers, command_line, free_port, process_tree, resident_bytes

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
def counting(tmp_path: Path) -> MeasuredProgram:
    command = [sys.executable, "-c", PARENT, tmp_path / "parent", tmp_path / "child"]
    program = MeasuredProgram.start("counting", command, tmp_path / "log")
    wait_for(lambda: (tmp_path / "parent").exists() and (tmp_path / "child").exists())
    return program


def test_a_suspended_program_and_its_children_do_nothing_until_they_are_resumed(
    counting: MeasuredProgram, tmp_path: Path
) -> None:
    counting.suspend()
    time.sleep(0.1)
    before = counters(tmp_path)
    time.sleep(0.3)
    assert counters(tmp_path) == before
    counting.resume()
    wait_for(lambda: all(a != b for a, b in zip(counters(tmp_path), before, strict=True)))
    counting.stop()


def test_a_stopped_program_leaves_no_process_behind_even_if_it_was_suspended(counting: MeasuredProgram) -> None:
    members = process_tree(counting.process.pid)
    assert len(members) == 2
    counting.suspend()
    counting.stop()
    wait_for(lambda: not any(command_line(member.pid) for member in members))


def test_a_program_that_exits_before_it_is_ready_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = MeasuredProgram.start(
        "short", [sys.executable, "-c", "raise SystemExit('no luck today')"], tmp_path / "log"
    )
    with pytest.raises(BenchError, match="short exited with code 1: no luck today"):
        program.wait_until(lambda: False, seconds=20)


def test_a_program_that_is_not_ready_in_time_is_an_error(counting: MeasuredProgram) -> None:
    with pytest.raises(BenchError, match=r"counting is not ready after 0.2 s: it logged nothing"):
        counting.wait_until(lambda: False, seconds=0.2)
    counting.stop()


def test_a_missing_program_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nobody does not start"):
        MeasuredProgram.start("nobody", [tmp_path / "nothing"], tmp_path / "log")


def test_a_piped_program_is_read_until_it_exits(tmp_path: Path) -> None:
    code = "print(input() + '!', flush=True)"
    program = MeasuredProgram.start("echo", [sys.executable, "-c", code], tmp_path / "log", piped=True)
    program.write_line("hello")
    assert program.read_line() == "hello!\n"
    with pytest.raises(BenchError, match="echo exited"):
        program.read_line()
    program.stop()


def test_a_program_that_prints_nothing_in_time_is_an_error(tmp_path: Path) -> None:
    program = MeasuredProgram.start("mute", [sys.executable, "-c", "input()"], tmp_path / "log", piped=True)
    with pytest.raises(BenchError, match=r"mute printed nothing for 0.2 s"):
        program.read_line(seconds=0.2)
    program.stop()


@pytest.mark.skipif(not PROC.exists() or shutil.which("ps") is None, reason="needs both /proc and ps")
def test_proc_and_ps_agree(counting: MeasuredProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = counting.process.pid
    expected = [member.pid for member in process_tree(pid)], command_line(pid).split()[:2]
    monkeypatch.setattr("bench.load.processes.PROC", Path("/nowhere"))
    assert ([member.pid for member in process_tree(pid)], command_line(pid).split()[:2]) == expected
    assert len(expected[0]) == 2
    counting.stop()


def test_the_memory_of_a_process_is_measured() -> None:
    before = resident_bytes(os.getpid())
    block = bytearray(os.urandom(1)) * 50_000_000
    assert resident_bytes(os.getpid()) - before > 40_000_000
    assert len(block) == 50_000_000


def test_nothing_answers_on_a_free_port() -> None:
    assert not answers(f"http://127.0.0.1:{free_port()}/health")
