"""`denoised verify`: files made again, and compared. Exit codes as of cmp."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from denoised.cli.console import complain, say, say_json
from denoised.client import Client, ServiceError

MATCH, DIFFERENT, TROUBLE = 0, 1, 2


def compare(client: Client, files: Iterable[Path], as_json: bool) -> int:
    """Verify files one after another, a line each; returns the exit code."""
    code = MATCH
    for file in files:
        outcome = _verified(client, file)
        _tell(file, outcome, as_json)
        code = max(code, TROUBLE if "error" in outcome else MATCH if outcome["match"] else DIFFERENT)
    return code


def _verified(client: Client, file: Path) -> dict[str, Any]:
    """The service's answer for a file, or {"error": why there is none}."""
    try:
        return dict(client.verify(file.read_bytes()).raw)
    except ServiceError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"cannot be read ({error.strerror})"}


def _tell(file: Path, outcome: dict[str, Any], as_json: bool) -> None:
    """One line about a file: on stdout, or on stderr where it could not be made again."""
    if as_json:
        say_json({"file": str(file), **outcome})
    elif "error" in outcome:
        complain("verify", f"{file}: {outcome['error']}")
    else:
        request = outcome["request"]
        made = ", ".join(str(part) for part in (request["model"], request.get("label")) if part is not None)
        verdict = "the bytes are equal" if outcome["match"] else f"the bytes differ: {outcome['reason']}"
        say(f"{file}: made again, {verdict} ({made}, seed {request['seed']})")
