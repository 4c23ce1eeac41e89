"""The page with a text model: its fields are shown, sent and shown again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.text_pipelines import save_pipeline

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODEL = "tiny-sd"
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def text_service(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pipelines") / MODEL
    save_pipeline(folder)
    return start_service(tmp_path_factory.mktemp("text") / "data", "--model", str(folder))


def test_text_options_are_shown_for_text_models_alone_and_reach_the_job(open_page: Open, text_service: Any) -> None:
    page = open_page(text_service.url)
    page.set_default_timeout(60_000)
    page.get_by_role("radio", name="fashion-mnist", exact=True).check()
    page.locator("#more > summary").click()
    for name in ("negative_prompt", "clip_skip", "emphasis", "width", "height"):
        expect(page.locator(f"#{name}")).to_be_hidden()
    page.get_by_role("radio", name=MODEL, exact=True).check()
    page.locator("#prompt").fill("a (fox:1.4)")
    page.locator("#negative_prompt").fill("a dog")
    page.locator("#clip_skip").fill("1")
    page.locator("#emphasis").select_option("true")
    page.locator("#steps").fill("3")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#viewer")).to_have_attribute("data-state", "ended")
    with text_service.client() as client:
        (job,) = client.get("/jobs").json()["jobs"]
    assert (job["status"], job["model"], job["prompt"], job["steps"]) == ("succeeded", MODEL, "a (fox:1.4)", 3)
    assert (job["negative_prompt"], job["clip_skip"], job["emphasis"]) == ("a dog", 1, True)
