"""The sentence about a rejected value, for every kind of limit that a field or an option has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from denoised.command_line.rejected_values import describe_rejected_value


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (Annotated[int, Field(strict=True)], "3", "'3' was given (allowed: an integer)"),
        (Annotated[int, Field(ge=1)], 0, "0 was given (allowed: 1 or more)"),
        (Annotated[float, Field(le=20)], 21, "21 was given (allowed: 20 or less)"),
        (Annotated[float, Field(gt=0.5)], 0.5, "0.5 was given (allowed: more than 0.5)"),
        (Annotated[float, Field(allow_inf_nan=False)], float("inf"), "inf was given (allowed: a finite number)"),
        (float, "x", "'x' was given (allowed: a number)"),
        (Annotated[bool, Field(strict=True)], 1, "1 was given (allowed: true or false)"),
        (str, 5, "5 was given (allowed: a string)"),
        (list[int], 5, "5 was given (allowed: a list)"),
        (Literal["png", "webp"], "gif", "'gif' was given (allowed: png or webp)"),
        (Annotated[str, Field(max_length=2)], "abc", "'abc' has 3 characters (allowed: at most 2)"),
        (Annotated[list[int], Field(min_length=2)], [1], "[1] has 1 item (allowed: at least 2)"),
    ],
)
def test_a_rejected_value_is_said_with_what_is_allowed(kind: Any, value: Any, sentence: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        TypeAdapter(kind).validate_python(value)
    (error,) = refusal.value.errors()
    assert describe_rejected_value(error, repr(value)) == sentence
