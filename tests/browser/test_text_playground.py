"""The page with a text model: its fields and its ControlNets are shown, sent and shown again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_playground import finished, jobs_of, overflow, violations
from tests.control_nets import control_image, controlled_pipeline, png

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings: of diffusers

MODEL = "tiny-sd"
EDGES = png(control_image(1))
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def text_service(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = controlled_pipeline(tmp_path_factory.mktemp("pipelines"), MODEL)
    return start_service(tmp_path_factory.mktemp("text") / "data", *options)


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


def test_a_control_net_is_chosen_with_its_picture_and_its_weight(open_page: Open, text_service: Any) -> None:
    page = open_page(text_service.url, may_complain=True)  # Chromium logs each 422
    page.get_by_role("radio", name="fashion-mnist", exact=True).check()
    expect(page.locator("#controls-field")).to_be_hidden()
    page.get_by_role("radio", name=MODEL, exact=True).check()
    page.locator("#prompt").fill("a house")
    page.locator("#more > summary").click()
    page.locator("#steps").fill("2")
    page.get_by_role("checkbox", name="edges").check()
    page.locator("#generate").click()
    expect(page.locator("#controls-error")).to_have_text("“edges”, image: is missing.")
    files = [{"name": "edges.png", "mimeType": "image/png", "buffer": EDGES}]
    page.get_by_label("Control picture of edges").set_input_files(files)
    expect(page.get_by_label("The picture that edges follows")).to_be_visible()
    page.get_by_label("Weight of edges").fill("0.5")
    assert violations(page) == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert overflow(page) <= 0
    page.locator("#generate").click()
    finished(page)
    expect(page.locator("#viewer-facts")).to_contain_text("with edges 0.5")
    (control,) = jobs_of(text_service)[0]["controls"]
    assert (control["name"], control["scale"]) == ("edges", 0.5)
    page.get_by_role("checkbox", name="edges").uncheck()
    page.locator("#viewer-actions").get_by_role("button", name="Repeat", exact=True).click()
    expect(page.locator("#cards > li")).to_have_count(2)
    finished(page)
    repeated, first = jobs_of(text_service)[:2]
    assert repeated["controls"] == first["controls"]
    assert repeated["images"][0]["sha256"] == first["images"][0]["sha256"]
    expect(page.get_by_text("the same picture", exact=True)).to_be_visible()
