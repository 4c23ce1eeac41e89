"""The log: one line per event, whatever it contains."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoised.jobs.log import ERASE_LINE, REQUEST_ID, JsonLines, PlainFormatter


def line(message: str, *args: Any, error: BaseException | None = None, **extra: Any) -> str:
    record = logging.makeLogRecord(
        {"name": "denoised.test", "levelname": "INFO", "msg": message, "args": args, **extra}
    )
    record.exc_info = (type(error), error, None) if error is not None else None
    return JsonLines().format(record)


@given(st.text(st.characters()), st.text(st.characters()))
def test_every_log_record_is_one_line_of_printable_ascii(message: str, value: str) -> None:
    """uvicorn's CVE-2020-7694: no client can forge a line or control a terminal."""
    text = line("said %s", message, error=ValueError(value), prompt=value)
    assert all(" " <= character <= "~" for character in text)
    read = json.loads(text)
    assert read["event"] == f"said {message}"
    assert read["prompt"] == value


def test_a_line_has_time_level_logger_and_event() -> None:
    read = json.loads(line("job over", job="abc", created=1_800_000_000.25))
    assert read == {
        "time": "2027-01-15T08:00:00.250+00:00",
        "level": "info",
        "logger": "denoised.test",
        "event": "job over",
        "job": "abc",
    }


def test_a_line_names_the_request_being_answered() -> None:
    token = REQUEST_ID.set("r-1")
    try:
        assert json.loads(line("x"))["request_id"] == "r-1"
        assert json.loads(line("x", request_id="r-2"))["request_id"] == "r-2"
    finally:
        REQUEST_ID.reset(token)
    assert "request_id" not in json.loads(line("x"))


@given(st.text(st.characters()), st.text(st.characters()))
def test_every_line_on_a_terminal_is_one_of_printable_ascii(message: str, value: str) -> None:
    fields = {"name": "denoised.test", "levelname": "WARNING", "msg": "said %s", "args": (message,), "prompt": value}
    record = logging.makeLogRecord(fields)
    record.exc_info = (ValueError, ValueError(value), None)
    text = PlainFormatter().format(record)
    assert all(" " <= character <= "~" for character in text)
    assert "warning  said " in text


def test_a_terminal_gets_plain_lines_of_problems_alone() -> None:
    program = """
import logging
from denoised.jobs.log import log_to_stderr
log_to_stderr()
logging.getLogger("denoised.worker").info("serving digits")
logging.getLogger("denoised.serve").warning("child exited; restarting it", extra={"child": "worker"})
"""
    terminal, other = os.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stderr=other) as process:
        os.close(other)
        assert process.wait(60) == 0
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    line = r"\d\d:\d\d:\d\d  warning  child exited; restarting it  child=worker\r\n"
    assert re.fullmatch(re.escape(ERASE_LINE) + line, shown), shown


PROGRAM = """
import logging, threading, warnings
from denoised.jobs.log import log_to_stderr
log_to_stderr()
logging.getLogger("somebody's.library").warning("two\\nlines \\x1b[31m")
warnings.warn("careful\\nhere")
def fall(): raise RuntimeError("in a\\nthread")
thread = threading.Thread(target=fall)
thread.start()
thread.join()
raise KeyError("at the\\nend")
"""


def test_messages_of_libraries_warnings_and_uncaught_exceptions_are_such_lines() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    lines = [json.loads(text) for text in done.stderr.splitlines()]
    assert [entry["level"] for entry in lines] == ["warning", "warning", "critical", "critical"]
    assert "two\nlines" in lines[0]["event"]
    assert "careful\nhere" in lines[1]["event"]
    assert [entry["exception"].splitlines()[-2:] for entry in lines[2:]] == [
        ["RuntimeError: in a", "thread"],
        [lines[3]["exception"].splitlines()[-2], "KeyError: 'at the\\nend'"],
    ]


@pytest.mark.parametrize(
    ("format", "logged"),
    [("json", '"event": "started"'), ("text", "  info  started  port=1"), ("auto", '"event": "started"')],
)
def test_the_format_is_as_asked_and_json_by_default_where_no_terminal_is(format: str, logged: str) -> None:
    program = (
        "import logging; from denoised.jobs.log import log_to_stderr; "
        f"log_to_stderr({format!r}); logging.getLogger('denoised.x').info('started', extra=dict(port=1))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert logged in done.stderr
    assert "\x1b" not in done.stderr
