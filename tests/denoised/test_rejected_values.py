"""The sentence about a rejected value, for every kind of limit that a field or an option has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from denoised.command_line.rejected_values import describe_error, describe_rejected_value, describe_unknown_name


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
        (tuple[int, int], 5, "5 was given (allowed: a list)"),
        (Annotated[str, Field(pattern="^[a-z]+$")], "A", "'A' was given (allowed: text that matches ^[a-z]+$)"),
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


class Settings(BaseModel):
    """Something to validate."""

    steps: int

    @field_validator("steps")
    @classmethod
    def _is_even(cls, steps: int) -> int:
        if steps % 2:
            raise ValueError("not an even number")
        return steps


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "invalid JSON (EOF while parsing an object at line 1 column 1)"),
        ("[]", "should be a JSON object (given: VALUE)"),
        ("{}", "is missing"),
        ('{"steps": 1.5}', "VALUE was given (allowed: an integer)"),
        ('{"steps": 3}', "not an even number (given: VALUE)"),
    ],
)
def test_every_error_has_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate_json(text)
    (error,) = refusal.value.errors()
    assert describe_error(error, "VALUE") == sentence


def test_an_unknown_name_is_compared_with_the_known_ones() -> None:
    known = ["steps", "seed"]
    assert describe_unknown_name("step", "3", known, "key of this file") == (
        "is not a key of this file; did you mean steps? (given: 3; allowed: steps, seed)"
    )
    assert describe_unknown_name("foo", "3", [], "key of this file") == "is not a key of this file (given: 3)"
