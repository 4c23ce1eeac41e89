"""What `denoised serve` says on a terminal: the ready message and the status line."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from denoised.app.launch.serve import example_request, ready_message
from denoised.app.launch.status_line import SECONDS, StatusLine, describe_service, update_rates
from denoised.jobs.errors import StoreUnavailable
from denoised.jobs.log import ERASE_LINE
from denoised.jobs.worker_report import WorkerReport
from denoised.model.checkpoints.text_to_image.prompt_guide import PromptGuide
from tests.fake_model import FakeModel

CARD = FakeModel("shoes").card
WORKER = WorkerReport("w", [{"name": "shoes"}], 16, 3, 40, 100.0, reported_at=100.0, counters={"evaluations": 50})


def status_line(out: io.StringIO, workers: Sequence[WorkerReport], waiting: int, error: Exception | None = None) -> Any:
    def snapshot(models: object) -> object:
        if error is not None:
            raise error
        return SimpleNamespace(waiting={"shoes": [object()] * waiting})

    catalog = SimpleNamespace(workers=lambda: workers, known=lambda: ["shoes"])
    return StatusLine(out, cast("Any", catalog), cast("Any", SimpleNamespace(snapshot=snapshot)))


def drawn(*given: Any, columns: str = "100") -> list[str]:
    """The lines that are drawn in a little more than one period."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", columns)
        with status_line(out, *given):
            end = time.monotonic() + 20 * SECONDS
            while out.getvalue().count(ERASE_LINE) < 2:
                assert time.monotonic() < end
                time.sleep(0.01)
    return out.getvalue().split(ERASE_LINE)[1:]


def test_the_line_is_drawn_again_in_place_and_erased_at_the_end() -> None:
    *lines, last = drawn([WORKER], 2)
    assert lines[0] == "1 worker · 3 images in progress · 2 jobs waiting · 0 evaluations/s · stop: Ctrl-C"
    assert set(lines) == {lines[0]}
    assert last == ""


def test_an_error_of_the_store_is_said_and_ends_nothing() -> None:
    *lines, _ = drawn([WORKER], 2, StoreUnavailable("Redis does not\nanswer"))
    assert lines[0] == "Redis does not\N{REPLACEMENT CHARACTER}answer · stop: Ctrl-C"


def test_the_line_fits_the_terminal() -> None:
    assert drawn([WORKER], 2, columns="20")[0] == "1 worker · 3 images"


def test_a_service_without_work_or_workers_says_so() -> None:
    idle = replace(WORKER, trajectories=0)
    assert describe_service([idle, idle], 0, 0.0) == "2 workers · idle · stop: Ctrl-C"
    assert describe_service([], 0, 0.0) == "no worker is running · stop: Ctrl-C"
    assert describe_service([], 1, 0.0).startswith("no worker is running · 0 images in progress · 1 job waiting · ")
    assert "1 image in progress · 0 jobs waiting · 1,234 eval" in describe_service(
        [replace(idle, trajectories=1)], 0, 1234.4
    )


def test_a_rate_is_of_the_last_two_reports_of_each_worker() -> None:
    later = replace(WORKER, reported_at=102.0, counters={"evaluations": 250})
    before = {"w": WORKER}
    assert update_rates({}, {}, [WORKER]) == {"w": 0.0}
    assert update_rates({}, before, [later]) == {"w": 100.0}
    assert update_rates({"w": 7.0}, before, [WORKER]) == {"w": 7.0}, "no new report"
    restarted = replace(later, counters={"evaluations": 1})
    assert update_rates({"w": 7.0, "gone": 5.0}, before, [restarted]) == {"w": 0.0}


def test_the_ready_message_has_a_request_for_the_default_model() -> None:
    message = ready_message("127.0.0.1", 8000, requires_key=False, cards=[CARD, CARD.model_copy(update={"name": "b"})])
    assert message.startswith("denoised is ready on http://127.0.0.1:8000 (docs: http://127.0.0.1:8000/docs, stop:")
    assert f"\n  models: {CARD.name}, b (the first is the default)\n" in message
    assert f"""-d '{{"label": "{CARD.labels[0]}"}}' -o {CARD.labels[0]}.png""" in message
    keyed = ready_message("::", 1, requires_key=True, cards=[CARD])
    assert '-H "Authorization: Bearer $DENOISED_API_KEY"' in keyed
    assert "models: shoes\n" in keyed


def test_an_example_fits_what_the_model_takes() -> None:
    guide = PromptGuide(examples=["a goat's hat, on a \u201cteal\u201d background"])
    assert example_request(CARD.model_copy(update={"prompt_guide": guide})) == (
        "goat-s-hat",
        {"prompt": guide.examples[0]},
    )
    prompts = CARD.model_copy(update={"labels": [], "prompts": True})
    assert example_request(prompts)[1] == {"prompt": "a goat"}
    assert example_request(CARD.model_copy(update={"labels": []})) == ("picture", {})
    assert example_request(CARD.model_copy(update={"labels": ["猫"]})) == ("picture", {"label": "猫"})
