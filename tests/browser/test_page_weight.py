"""What the front page weighs at first sight, and that nothing on it moves while it loads and while a job runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Response, expect

from tests.browser.conftest import DESKTOP
from tests.browser.test_first_minute import PHONE
from tests.browser.test_playground import PAGE_BYTES, SHIFTS, finished, generate

pytestmark = pytest.mark.browser

Open = Callable[..., Page]

MAX_REQUESTS = 50
MAX_SHIFT = 0.01  # of the cumulative layout shift; web.dev calls up to 0.1 good
ON_DEMAND = (
    "mask.js",
    "picture-editor.js",
    "picture.css",
    "extend.js",
    "enlarged.js",
    "enlarged.css",
    "grid.js",
    "strip.js",
)


@pytest.mark.parametrize("size", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)])
def test_the_first_sight_is_light_and_nothing_moves(size: dict[str, int], open_page: Open, service: Any) -> None:
    received: dict[str, int] = {}

    def note(response: Response) -> None:
        received[response.url] = len(response.body()) if response.status == 200 else 0

    page = open_page("about:blank", viewport=size)
    page.on("response", note)
    page.goto(service.url)
    expect(page.locator("#status-text")).to_have_text("ready")
    expect(page.locator("#starters button").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert 100_000 < sum(received.values()) < PAGE_BYTES
    assert len(received) <= MAX_REQUESTS
    assert [url for url in received if url.endswith(ON_DEMAND)] == [], "these are loaded when they are asked for"
    assert {url for url in received if not url.startswith((service.url, "data:", "blob:"))} == set()
    assert page.evaluate(SHIFTS) < MAX_SHIFT


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_moves_when_a_job_ends(size: dict[str, int], open_page: Open, service: Any) -> None:
    page = open_page(service.url, viewport=size)
    generate(page, "bag", seed=4, steps=40)
    expect(page.locator("#viewer")).to_have_attribute("data-state", "live")
    page.wait_for_timeout(600)  # what moves within half a second of a click does not count
    before = page.evaluate(SHIFTS)
    finished(page)
    assert page.evaluate(SHIFTS) - before < MAX_SHIFT
