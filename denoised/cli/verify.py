"""`denoised verify`: regenerate images and compare the bytes. The exit codes are those of cmp."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoised.cli.console import print_line
from denoised.client import Client, ServiceError
from denoised.command_line.console import print_error, print_json

EQUAL, DIFFERENT, ERROR = 0, 1, 2


@dataclass(frozen=True)
class PictureFiles:
    """What images were made from; None for images made from nothing but noise."""

    image: Path | None = None
    mask: Path | None = None
    controls: Sequence[Path] = ()


def verify_files(client: Client, files: Iterable[Path], as_json: bool, inputs: PictureFiles) -> int:
    """Verify files one after another and print one line per file. Returns the exit code."""
    code = EQUAL
    for file in files:
        result = _verify(client, file, inputs)
        _print_result(file, result, as_json)
        code = max(code, ERROR if "error" in result else EQUAL if result["match"] else DIFFERENT)
    return code


def _verify(client: Client, file: Path, inputs: PictureFiles) -> dict[str, Any]:
    """The server's answer for a file, or {"error": the reason}."""
    try:
        return dict(client.verify(file.read_bytes(), inputs.image, inputs.mask, inputs.controls).raw)
    except ServiceError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"cannot be read ({error.strerror})"}


def _print_result(file: Path, result: dict[str, Any], as_json: bool) -> None:
    """Print one line about a file: on stdout, or on stderr if it could not be regenerated."""
    if as_json:
        print_json({"file": str(file), **result})
    elif "error" in result:
        print_error("verify", f"{file}: {result['error']}")
    else:
        request = result["request"]
        source = ", ".join(str(part) for part in (request["model"], request.get("label")) if part is not None)
        verdict = "the bytes are equal" if result["match"] else f"the bytes differ: {result['reason']}"
        print_line(f"{file}: regenerated, {verdict} ({source}, seed {request['seed']})")
