"""The command line on a real terminal (a pty) and in pipes, against a real server."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from denoised.jobs.log import ERASE_LINE
from tests import fork_server
from tests.journeys.conftest import GARMENTS, free_port
from tests.pseudo_terminal import restore_sigint, take_terminal

TIMEOUT = 300.0
HALF_BLOCK = "▀"
CURSOR_UP = re.compile(r"\x1b\[\d*A")
COLOR = re.compile(r"\x1b\[[0-9;]*[34]8;[25];[0-9;]*m")
QUIET = {"NO_COLOR", "FORCE_COLOR", "COLORTERM", "TERM", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}


class Terminal:
    """A program on its own terminal."""

    def __init__(
        self, *arguments: str, columns: int = 100, rows: int = 40, folder: Path | None = None, **environment: str
    ) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        plain = {name: value for name, value in os.environ.items() if name not in QUIET}
        settings = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8", **environment}
        self._process = fork_server.Popen(
            [sys.executable, "-m", "denoised", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=plain | settings,
            cwd=folder,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self._screen = ours
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end inside a character
        self.written = ""

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + TIMEOUT
        while words not in self.written:
            assert time.monotonic() < end, f"no {words!r} in the output: {self.written[-2000:]!r}"
            assert self._read(), f"exited before {words!r}: {self.written[-2000:]!r}"

    def press(self, keys: bytes) -> None:
        os.write(self._screen, keys)

    def end(self) -> int:
        """Wait for the program to exit. Returns the exit code."""
        end = time.monotonic() + TIMEOUT
        while self._read():
            assert time.monotonic() < end, f"does not exit: {self.written[-2000:]!r}"
        os.close(self._screen)
        return self._process.wait(TIMEOUT)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], TIMEOUT)
        assert ready, f"no output: {self.written[-2000:]!r}"
        try:
            data = os.read(self._screen, 65536)
        except OSError:  # on Linux, after the last program on the terminal has exited
            data = b""
        self.written += self._decoder.decode(data)
        return bool(data)


def shown(*arguments: str, **kwargs: Any) -> str:
    """The output of a successful program on a terminal."""
    terminal = Terminal(*arguments, **kwargs)
    assert terminal.end() == 0, terminal.written
    return terminal.written


def piped(*arguments: str, service: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return fork_server.run(
        [sys.executable, "-m", "denoised", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=os.environ | {"DENOISED_URL": service.url} | environment,
        check=False,
    )


@pytest.fixture(scope="module")
def at(service: Any) -> tuple[str, str]:
    return ("--url", service.url)


def test_a_terminal_shows_a_bar_then_the_image_then_its_file(at: tuple[str, str], tmp_path: Path) -> None:
    out = "."
    written = shown(
        "generate", "--label", "sneaker", "--seed", "7", "--steps", "12", "--out", out, *at, folder=tmp_path
    )
    assert "/12" in written
    assert "━" in written
    lines = written.splitlines()
    pixels = [line for line in lines if HALF_BLOCK in line]
    assert [line.count(HALF_BLOCK) for line in pixels] == [28] * 14
    assert lines[-2] == "sneaker-7.png"
    assert re.fullmatch(r"seed 7, [\d.]+ s; to check it: denoised verify sneaker-7\.png", lines[-1]), lines[-1]
    with Image.open(tmp_path / "sneaker-7.png") as picture:
        levels = [picture.getpixel((x, 0)) for x in range(28)]
    first = [int(red) for red, run in re.findall(r"38;2;(\d+);[^m]*m(▀+)", pixels[0]) for _ in run]
    assert first == levels


def test_watch_shows_frame_after_frame(at: tuple[str, str], tmp_path: Path) -> None:
    request = ["--label", "bag", "--steps", "60", "--watch", "--preview", "both", "--out", str(tmp_path)]
    written = shown("generate", *request, *at)
    frames = CURSOR_UP.split(written)
    assert len({frame for frame in frames if HALF_BLOCK in frame}) >= 3, "each another picture"
    assert len(list(tmp_path.glob("bag-*.png"))) == 1


def test_no_line_is_wider_than_a_narrow_terminal(at: tuple[str, str], tmp_path: Path) -> None:
    request = ["--label", "coat", "-n", "2", "--steps", "5", "--watch", "--out", "pictures"]
    written = shown("generate", *request, *at, columns=24, rows=12, folder=tmp_path)
    for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)):
        assert len(line) <= 24 or line.startswith("pictures/"), line


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": "vt100", "COLORTERM": ""}])
def test_a_terminal_without_colors_gets_none(environment: dict[str, str], at: tuple[str, str], tmp_path: Path) -> None:
    written = shown("generate", "--label", "bag", "--steps", "2", "--watch", "--out", str(tmp_path), *at, **environment)
    assert not COLOR.search(written)
    assert HALF_BLOCK not in written
    assert "\x1b" not in written or environment != {"TERM": "dumb"}
    assert written.splitlines()[-1].endswith(".png")


def test_ctrl_c_cancels_the_job_and_says_so(service: Any, at: tuple[str, str], tmp_path: Path) -> None:
    terminal = Terminal("generate", "--steps", "1000", "-n", "4", "--seed", "31", "--out", str(tmp_path), *at)
    terminal.wait_for("running")
    terminal.press(b"\x03")
    assert terminal.end() == 130
    said = re.search(r"interrupted; job (\w+) was canceled", terminal.written)
    assert said
    assert "Traceback" not in terminal.written
    with service.client() as client:
        job = client.get(f"/jobs/{said[1]}").json()
    assert (job["status"], job["seed"]) == ("canceled", 31)
    assert not list(tmp_path.iterdir())


def test_top_redraws_until_ctrl_c(service: Any, at: tuple[str, str]) -> None:
    with service.client() as client:
        job = client.post("/generate", json={**GARMENTS, "steps": 1000, "n": 2}).json()
        terminal = Terminal("top", "--interval", "0.5", *at)
        terminal.wait_for(job["id"][:8])
        terminal.wait_for("running")
        end = time.monotonic() + TIMEOUT
        while not re.search(r"2/\d+ +[1-9][\d,]* ", terminal.written):
            assert time.monotonic() < end, terminal.written[-2000:]
            terminal._read()
        terminal.press(b"\x03")
        assert terminal.end() == 0
        client.delete(f"/jobs/{job['id']}")


def test_when_piped_stdout_contains_only_the_files_and_stderr_plain_lines(service: Any, tmp_path: Path) -> None:
    request = ["--label", "sneaker", "-n", "2", "--seed", "3", "--steps", "8", "--out", str(tmp_path)]
    done = piped("generate", *request, service=service)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{tmp_path}/sneaker-{seed}.png" for seed in (3, 4)]
    said = done.stderr.splitlines()
    assert said[0].startswith("queued, ")
    assert said[-1] == "step 8 of 8"
    assert "\x1b" not in done.stdout + done.stderr


def test_generate_with_json_prints_the_job_with_its_files(service: Any, tmp_path: Path) -> None:
    request = ["--label", "dress", "--steps", "4", "-n", "2", "--out", str(tmp_path), "--json"]
    done = piped("generate", *request, service=service)
    assert (done.returncode, done.stderr) == (0, "")
    job = json.loads(done.stdout)
    assert job["status"] == "succeeded"
    assert sorted(image["file"] for image in job["images"]) == sorted(map(str, tmp_path.iterdir()))
    watched = piped("generate", *request, "--watch", "--preview-every", "2", service=service, DENOISED_SEED="5")
    *events, job = map(json.loads, watched.stdout.splitlines())
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["step"] for event in events if event["type"] == "frame" and event["image"] == 0] == [2, 4]
    assert (events[-1]["type"], job["seed"]) == ("succeeded", 5)


def test_sigint_cancels_the_job_when_piped(service: Any, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "denoised",
        "generate",
        "--steps",
        "1000",
        "--out",
        str(tmp_path),
        "--url",
        service.url,
    ]
    with fork_server.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=restore_sigint) as process:
        assert process.stderr is not None
        while "started" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        last = process.stderr.read().splitlines()[-1]
        assert process.wait(TIMEOUT) == 130
    assert last.endswith("was canceled")


def test_a_closed_pipe_is_not_an_error(service: Any) -> None:
    command = f"{sys.executable} -m denoised jobs --url {service.url} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_the_doctor_finds_no_problem_with_a_running_service(service: Any) -> None:
    port = service.url.rpartition(":")[2]
    done = piped("doctor", "--json", "--port", port, "--data-dir", str(service.data_dir), service=service)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    found = {finding["check"]: finding for finding in report["findings"]}
    assert report["ok"] is True
    assert {"data folder", "clock", "cuda", "processor", "threads", "compiler", "kernel cache"} <= set(found)
    for check in (
        "store",
        "store memory",
        "store persistence",
        "port",
        "device",
        "model fashion-mnist",
        "model digits",
    ):
        assert found[check]["state"] == "ok", found[check]
    assert re.search(r"denoised \d+\.\d+\.\d+ is running", found["port"]["message"])


def test_serve_on_a_terminal_has_a_status_line_until_ctrl_c(tmp_path: Path) -> None:
    environment = {"DENOISED_MAX_BATCH": "16"}
    terminal = Terminal("serve", "--port", str(free_port()), "--data-dir", str(tmp_path), **environment)
    terminal.wait_for("denoised is ready on http://127.0.0.1:")
    terminal.wait_for("1 worker · idle · stop: Ctrl-C")
    terminal.press(b"\x03")
    assert terminal.end() == 0
    before, _, ready = terminal.written.partition("denoised is ready on")
    assert before == ""
    assert ready.endswith(f"{ERASE_LINE}stopping …\r\n")


def test_jobs_keep_their_columns_in_80_characters(service: Any, at: tuple[str, str]) -> None:
    with service.client() as client:
        job = client.post("/generate", json={**GARMENTS, "steps": 2}, headers={"Prefer": "wait=60"}).json()
    heading, *rows = shown("jobs", "--limit", "3", *at, columns=80).splitlines()
    assert re.sub(r"\x1b\[[0-9;]*m", "", heading).split() == ["id", "status", "model", "picture", "n", "age"]
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", row).rstrip() for row in rows]
    assert plain[0].startswith(f"{job['id']}  succeeded  fashion-mnist")
    assert all(len(row) <= 80 for row in plain)
    assert len(plain) <= 3, "one line for each job"
