"""The page with a text model: the prompt, examples to click, and chips that write the prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_playground import finished, jobs_of, violations
from tests.text_pipelines import save_pipeline

pytestmark = pytest.mark.browser

GUIDE = {
    "examples": ["goat, flat style, on a teal background", "rocket, noto style, on a red background", "a tree"],
    "template": "{subject}, {style} style, on a {background} background",
    "parts": {"style": ["noto", "blob", "fluent", "flat"], "background": ["white", "red", "teal", "pink"]},
}
MODELS = {"painter": GUIDE, "plain": {"examples": ["a quiet street at night"]}}


@pytest.fixture(scope="module")
def drawing(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with a text model whose prompts have parts, and one with an example alone."""
    folders = tmp_path_factory.mktemp("drawing")
    options: list[str] = []
    for name, guide in MODELS.items():
        save_pipeline(folders / name)
        card = {"prompt_guide": guide, "default": {"sampler": "ddim", "steps": 4, "guidance_scale": 3}}
        (folders / name / "model_card.json").write_text(json.dumps(card))
        options += ["--model", str(folders / name)]
    return start_service(folders / "data", *options)


def choose(page: Page, model: str) -> None:
    page.get_by_role("radio", name=model, exact=True).check()
    expect(page.locator("#prompt")).to_be_visible()


def chip(page: Page, part: str, value: str) -> Any:
    return page.get_by_role("group", name=part, exact=True).get_by_role("radio", name=value, exact=True)


def test_a_visitor_can_generate_at_once(drawing: Any, open_page: Any) -> None:
    page = open_page(drawing.url)
    choose(page, "painter")
    assert page.locator("#prompt").input_value() in GUIDE["examples"]
    page.locator("#prompt").fill("goat, flat style, on a teal background")
    page.locator("#generate").click()
    finished(page)
    (job, *_) = jobs_of(drawing)
    assert (job["model"], job["prompt"], job["label"]) == ("painter", "goat, flat style, on a teal background", None)
    expect(page.locator("#viewer-title")).to_have_text("goat, flat style, on a teal background")
    page.reload()
    choose(page, "painter")
    expect(page.locator("#prompt")).to_have_value("goat, flat style, on a teal background")


@pytest.mark.slow
def test_chips_write_the_prompt_and_follow_it(drawing: Any, open_page: Any) -> None:
    page = open_page(drawing.url)
    choose(page, "painter")
    prompt = page.locator("#prompt")
    prompt.fill("a small house, at night")
    expect(chip(page, "Style", "any")).to_be_checked()
    chip(page, "Background", "red").check()
    expect(prompt).to_have_value("a small house, at night, on a red background")
    chip(page, "Style", "fluent").check()
    expect(prompt).to_have_value("a small house, at night, fluent style, on a red background")
    chip(page, "Background", "any").check()
    expect(prompt).to_have_value("a small house, at night, fluent style")
    prompt.fill("On a Pink background,  goat")
    expect(chip(page, "Background", "pink")).to_be_checked()
    expect(chip(page, "Style", "any")).to_be_checked()
    chip(page, "Style", "blob").check()
    expect(prompt).to_have_value("goat, blob style, on a pink background")
    prompt.fill("")
    chip(page, "Style", "noto").check()
    expect(prompt).to_have_value("noto style")


@pytest.mark.slow
def test_an_example_fills_the_prompt_and_its_chips(drawing: Any, open_page: Any) -> None:
    page = open_page(drawing.url)
    choose(page, "painter")
    page.locator("#examples").get_by_role("button", name="rocket", exact=True).click()
    expect(page.locator("#prompt")).to_have_value("rocket, noto style, on a red background")
    expect(chip(page, "Style", "noto")).to_be_checked()
    expect(chip(page, "Background", "red")).to_be_checked()


@pytest.mark.slow
def test_another_model_replaces_examples_and_keeps_what_was_written(drawing: Any, open_page: Any) -> None:
    page = open_page(drawing.url)
    choose(page, "painter")
    page.locator("#examples").get_by_role("button", name="goat", exact=True).click()
    choose(page, "plain")
    expect(page.locator("#prompt")).to_have_value("a quiet street at night")
    expect(page.get_by_role("group", name="Style", exact=True)).to_have_count(0)
    page.locator("#prompt").fill("my own words")
    choose(page, "painter")
    expect(page.locator("#prompt")).to_have_value("my own words")
    page.get_by_role("radio", name="fashion-mnist", exact=True).check()
    expect(page.locator("#prompt")).to_be_hidden()


@pytest.mark.slow
def test_the_negative_prompt_is_under_more(drawing: Any, open_page: Any) -> None:
    page = open_page(drawing.url)
    choose(page, "painter")
    expect(page.locator("#negative_prompt")).to_be_hidden()
    page.locator("#more > summary").click()
    page.locator("#negative_prompt").fill("a sheep")
    page.locator("#generate").click()
    finished(page)
    assert jobs_of(drawing)[0]["negative_prompt"] == "a sheep"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(360, 740, "dark"), (360, 740, "light"), (1280, 900, "light"), (1280, 900, "dark")],
)
def test_the_form_is_accessible_and_fits(
    width: int, height: int, scheme: str, drawing: Any, open_page: Any, tmp_path: Path
) -> None:
    page = open_page(drawing.url, viewport={"width": width, "height": height}, color_scheme=scheme)
    choose(page, "painter")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
