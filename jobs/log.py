"""Structured logs on stderr: one JSON object per line; on a terminal, plain lines for people, or as asked.

JSON escapes every control character and everything beyond ASCII, so that neither a client, a file nor an exception
can forge a line or control a terminal. The `extra={…}` of a call becomes members of the object.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

# The request being answered; set by the front end.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

LogFormat = Literal["auto", "json", "text"]
ERASE_LINE = "\r\x1b[K"  # for a terminal: back to the first column, and erase to the end of the line

_STANDARD_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Members: time (UTC), level, logger, event, those of `extra`, request_id, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD_ATTRIBUTES}
        if REQUEST_ID.get():
            line.setdefault("request_id", REQUEST_ID.get())
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")


class PlainFormatter(logging.Formatter):
    """For people: local time, level, event, and the members of `extra` as name=value, in one line.

    Control characters and everything beyond ASCII are escaped as in JSON. An exception is its last line alone.
    """

    def __init__(self, prefix: str = "") -> None:
        """prefix: written before each line."""
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD_ATTRIBUTES}
        words = [f"{name}={_escaped(value)}" for name, value in extra.items()]
        if record.exc_info and record.exc_info[1] is not None:
            words.append(_escaped(f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"))
        return self._prefix + "  ".join([time, record.levelname.lower(), _escaped(record.getMessage()), *words])


def _escaped(value: object) -> str:
    return json.dumps(str(value)).strip('"').replace('\\"', '"').replace("\x7f", "\\u007f")


def log_to_stderr(format: LogFormat = "auto") -> None:
    """Log this process to stderr: its own events, libraries' messages, warnings, and uncaught exceptions.

    format: `json`, one object per line; `text`, lines for people; `auto`, text on a terminal and JSON elsewhere. Events
        that are no problem are left out of the text of a terminal with `auto`.
    """
    on_terminal = sys.stderr.isatty()
    quiet = on_terminal and format == "auto"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter(_prefix(on_terminal)) if quiet or format == "text" else JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("denoised").setLevel(logging.WARNING if quiet else logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda hook: _uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)


def _prefix(on_terminal: bool) -> str:
    """What erases the status line of `denoised serve`, which another process draws."""
    return ERASE_LINE if on_terminal and os.environ.get("TERM") != "dumb" else ""


def _uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("denoised").critical("uncaught exception", exc_info=(kind, error, traceback))
