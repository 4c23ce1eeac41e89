"""Errors of the operating system in words."""

from __future__ import annotations

import pytest

from denoised.command_line.system_errors import describe_system_error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device"),
        (OSError(111, "Connection refused"), "Connection refused"),
        (OSError("--out /x cannot be written"), "--out /x cannot be written"),
        (RuntimeError("[Errno -2] Name or service not known"), "Name or service not known"),
        (RuntimeError("not ready [Errno 111] refused"), "not ready refused"),
        (ValueError("3 is not allowed"), "3 is not allowed"),
    ],
)
def test_an_error_is_told_without_its_number(error: Exception, words: str) -> None:
    assert describe_system_error(error) == words
