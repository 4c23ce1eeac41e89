"""The API page in a real browser: complete, without internet access, and with an API key."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from denoised.jobs.request import FIELDS
from tests.browser.test_playground import overflow, violations
from tests.journeys.conftest import TIMEOUT

pytestmark = pytest.mark.browser

Open = Callable[..., Page]


def test_every_operation_and_object_is_listed_without_leaving_the_server(open_page: Open, service: Any) -> None:
    with service.client() as client:
        document = client.get("/openapi.json").json()
    operations = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
    requested: list[str] = []
    page = open_page("about:blank")
    page.on("request", lambda request: requested.append(request.url))
    page.goto(f"{service.url}/docs")
    expect(page.locator("details:has(.method)")).to_have_count(len(operations))
    listed = page.locator("details:has(.method) > summary").all_inner_texts()
    assert len(operations) > 10
    assert sorted(tuple(text.split()[:2]) for text in listed) == sorted(operations)
    for name in document["components"]["schemas"]:
        assert page.locator(f"details[id='{name}']").count() == 1, name
    assert {url for url in requested if not url.startswith((service.url, "data:"))} == set()


@pytest.mark.slow
def test_an_operation_shows_its_fields_its_responses_and_a_curl_command_that_works(
    open_page: Open, service: Any, tmp_path: Path
) -> None:
    page = open_page(f"{service.url}/playground/docs.html")
    page.locator("summary", has_text="Generate pictures").click()
    opened = page.locator("details[open]")
    expect(opened.locator(".fields > li", has_text="guidance_rescale")).to_contain_text("number, 0 … 1 or null")
    expect(opened.locator(".fields > li", has_text="preview_every")).to_contain_text("default 0")
    expect(opened.locator(".fields > li", has_text="preview_every")).to_contain_text("0 = no frames")
    expect(opened.locator(".fields > li", has_text=re.compile(r"^guidance_scale"))).to_contain_text(
        "default: the model’s"
    )
    expect(opened.locator(".fields > li", has_text="The queue is full")).to_contain_text("429 ProblemObject")
    for name in ("spacing", "format", "preview", "priority"):
        row = opened.locator(".fields > li", has_text=re.compile(rf"^{name} "))
        listed = [f"{value}{meaning}" for value, meaning in FIELDS[name].meanings.items()]
        assert row.locator(".values > div").all_text_contents() == listed, "in the order of the schema"
    shape = json.loads(opened.locator("h3", has_text="Shape of the response").locator("+ pre").inner_text())
    assert {"id", "status", "seed", "progress", "images"} <= set(shape)
    opened.locator(".fields a", has_text="JobObject").first.click()
    expect(page.locator("details[id=JobObject]")).to_have_attribute("open", "")
    line = opened.first.locator("pre").first.inner_text()
    done = subprocess.run(
        ["bash", "-c", f"{line} -w '%{{http_code}}' -o job.json"], cwd=tmp_path, capture_output=True, timeout=TIMEOUT
    )
    assert done.stdout == b"202", (line, done.stderr)


@pytest.mark.slow
def test_a_visitor_searches_tries_and_copies(open_page: Open, service: Any) -> None:
    page = open_page(f"{service.url}/docs", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Search").fill("generate pictures")
    page.locator("summary", has_text="Generate pictures").click()
    opened = page.locator("details[open]")
    expect(page.locator("summary", has_text="/healthz")).to_be_hidden()
    expect(opened.get_by_text("Fast and exact, a good first choice.")).to_be_visible()  # a value of `sampler`
    for language, text in (("Python", "httpx.Client"), ("JavaScript", "await fetch"), ("curl", "curl -sS")):
        opened.get_by_role("button", name=language, exact=True).click()
        expect(opened.locator("pre").first).to_contain_text(text)
    opened.get_by_role("button", name="Copy").click()
    expect(opened.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == opened.locator("pre").first.inner_text()
    opened.get_by_label("Body").fill('{"model": "digits", "label": "3", "steps": 2}')
    opened.get_by_role("button", name="Send").click()
    picture = opened.get_by_role("img", name="The picture in the response")
    expect(picture).to_be_visible()
    assert picture.evaluate("it => it.decode().then(() => it.naturalWidth)") == 8
    page.get_by_label("Search").fill("DENOISED_QUEUE_WITHOUT_WORKER")
    page.locator("summary", has_text="GET /models").click()
    page.locator("details[open]:visible").get_by_role("button", name="Send").click()
    with service.client() as client:
        first = client.get("/models").json()[0]["name"]
    expect(page.locator("details[open]:visible .answer pre")).to_contain_text(f'"name": "{first}"')


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_it(scheme: str, open_page: Open, service: Any) -> None:
    page = open_page(f"{service.url}/docs", color_scheme=scheme, reduced_motion="reduce")
    page.locator("summary", has_text="Generate pictures").click()
    assert violations(page) == []
    page.set_viewport_size({"width": 360, "height": 780})
    assert overflow(page) <= 0
    assert violations(page) == []


@pytest.mark.slow
def test_the_page_asks_for_a_key_if_the_server_needs_one(
    open_page: Open, start_service: Callable[..., Any], tmp_path: Path
) -> None:
    locked = start_service(tmp_path / "data", environment={"DENOISED_API_KEYS": "a-key-of-ours"})
    page = open_page(f"{locked.url}/playground/docs.html", may_complain=True)  # about each 401
    expect(page.locator("#login")).to_be_visible()
    assert violations(page) == []
    page.get_by_label("API key").fill("a-guess")
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_contain_text("The API key is unknown.")
    page.get_by_label("API key").fill("a-key-of-ours")
    page.keyboard.press("Enter")
    page.locator("summary", has_text="Generate pictures").click()
    expect(page.locator("details[open] pre").first).to_contain_text('"Authorization: Bearer $DENOISED_API_KEY"')
    expect(page.locator("#login")).to_be_hidden()
