"""The log: one JSON object a line, on stderr, whatever a client, a file or an exception puts into it.

Every control character and everything beyond ASCII is escaped by JSON itself, so that nobody can
forge a line or steer a terminal. `extra={…}` of a call become members of the object.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

# Which request this is about: set by the front end for as long as it answers one.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """time (UTC), level, logger, event, what `extra` holds, request_id, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        if REQUEST_ID.get():
            line.setdefault("request_id", REQUEST_ID.get())
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")


def to_stderr() -> None:
    """Have this process log so: its own events, its libraries' complaints, warnings, and what nobody caught."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("denoised").setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda hook: _uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("denoised").critical("uncaught exception", exc_info=(kind, error, traceback))
