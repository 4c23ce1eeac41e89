"""The values of fields that take one of a few: each has a meaning, which the schema and the terminal show."""

from __future__ import annotations

import pytest

from denoised.app.http.requests.request_body import body_field
from denoised.cli.offered_values import completion, offered_values
from denoised.jobs.request import FIELDS
from denoised.jobs.task_request import TASK_FIELDS

CHOSEN = [name for name, field in FIELDS.items() if field.choices]


def test_fields_of_a_few_values_are_known() -> None:
    assert CHOSEN == ["spacing", "format", "preview", "priority"]
    assert TASK_FIELDS["noise"]["format"].meanings == FIELDS["format"].meanings


@pytest.mark.parametrize("name", CHOSEN)
def test_every_value_has_a_meaning_that_the_schema_and_the_terminal_show(name: str) -> None:
    field = FIELDS[name]
    assert tuple(field.meanings) == field.choices
    assert all(0 < len(meaning) <= 100 for meaning in field.meanings.values())
    assert body_field(field).json_schema_extra["x-meanings"] == field.meanings
    assert offered_values(name, [], None) == (list(field.meanings.items()), "the request")


def test_a_shell_completes_them_without_a_server() -> None:
    assert [value for value, _ in completion("spacing")(None, "ays")] == ["ays_sd", "ays_sdxl"]  # type: ignore[arg-type]
