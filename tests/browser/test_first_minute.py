"""What a visitor meets in the first minute, and what once went wrong on the page."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.test_playground import (
    VIEWER,
    finished,
    generate,
    jobs_of,
    overflow,
    pixels,
    until,
    violations,
)

pytestmark = pytest.mark.browser

Open = Callable[..., Page]

PHONE = {"width": 360, "height": 740}
# The buttons of open menus that are outside of the window, or below something else.
UNREACHABLE = """() => [...document.querySelectorAll("details.menu[open] div button")].filter((button) => {
  const { left, right, top, bottom } = button.getBoundingClientRect();
  const at = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
  return left < 0 || right > document.documentElement.clientWidth || top < 0 || bottom > innerHeight || at !== button;
}).map((button) => button.textContent)"""
# What the cards of one seed say of jobs that differ in one field each.
CARD_FACTS = """async () => {
  const { cardFacts } = await import("/playground/shared/text.js");
  const job = { seed: 7, n: 1, sampler: "ddim", steps: 20, guidance_scale: 1, image: null, strength: 0.8 };
  const others = [{ steps: 21 }, { sampler: "heun" }, { guidance_scale: 2.5 }, { n: 2 }, { image: "sha256:0" }];
  return [job, ...others.map((each) => ({ ...job, ...each }))].map(cardFacts);
}"""
RATE = """async () => {
  const { Rate } = await import("/playground/shared/rate.js");
  const rate = new Rate();
  for (let k = 0; k < 30; k += 1) rate.record({ step: k, evaluations: k }, 100 * k);
  return [2900, 8000, 9000].map((now) => rate.stalledSeconds(now));
}"""
DROP = """async ([name, type, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
  }
}"""


def test_the_first_sight_is_a_film_and_one_click_makes_a_picture(open_page: Open, service: Any) -> None:
    page = open_page(service.url)
    seen = {pixels(page, "#xt")}
    until(page, "before => xt.toDataURL() !== before", next(iter(seen)))
    expect(page.locator("#film-time")).to_have_text(re.compile(r"^t = \d{1,3}$"))
    with service.client() as client:
        default = client.get("/models").json()[0]["default"]
    subject = page.locator("#starters button").nth(3).get_attribute("title") or ""
    assert subject.startswith(page.locator("#starters button").nth(3).inner_text())
    page.locator("#starters button").nth(3).click()
    expect(page.locator("#viewer-title")).to_have_text(subject)
    finished(page)
    expect(page.locator("#xt-caption")).to_have_text("The finished picture", use_inner_text=True)
    page.locator("#scrubber").press("Home")
    expect(page.locator("#xt-caption")).to_have_text("The network sees xt", use_inner_text=True)
    expect(page.locator("#eps-caption")).to_have_text("So the noise is ε̂", use_inner_text=True)
    shown = pixels(page, "#eps")
    page.locator("#scrubber").press("ArrowRight")
    until(page, "before => eps.toDataURL() !== before", shown)
    page.locator("#scrubber").press("End")
    expect(page.locator("#cards small")).to_contain_text(f"{default['steps']} steps")
    page.get_by_role("button", name="Smooth").click()
    assert page.locator("#xt").evaluate("it => getComputedStyle(it).imageRendering") == "auto"
    page.locator("#xt").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(re.compile(rf"{re.escape(subject)}, seed \d+"))
    assert violations(page) == []
    dialog.get_by_role("button", name="Close").click()
    page.locator("#play").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    style = page.locator("#play").evaluate(
        "it => [getComputedStyle(it).outlineStyle, getComputedStyle(it).outlineColor]"
    )
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert style == ["solid", ink], "the outline differs from the button and the ring around it"


def test_reduced_motion_shows_one_still_frame(open_page: Open, service: Any) -> None:
    page = open_page(service.url, reduced_motion="reduce")
    expect(page.locator("#status-text")).to_have_text("ready")
    until(page, "() => xt.toDataURL() !== x0.toDataURL()")
    page.wait_for_timeout(200)
    still = pixels(page, "#xt")
    page.wait_for_timeout(400)
    assert pixels(page, "#xt") == still


@pytest.mark.slow
def test_every_menu_is_inside_the_screen_and_above_every_card(open_page: Open, service: Any) -> None:
    with service.client() as client:
        body = {"model": "digits", "steps": 1}
        job = client.post("/generate", json=body, headers={"Prefer": "wait=60"}).json()
    stored = json.dumps([job | {"id": f"{k:032x}", "seed": k} for k in range(9)])
    for size in (PHONE, {"width": 1280, "height": 900}):
        page = open_page(service.url, storage={"denoised.jobs": stored}, viewport=size, may_complain=True)
        expect(page.locator("#cards > li")).to_have_count(9)
        expect(page.locator(".badge:visible")).to_have_count(9)  # "expired": the server does not know these ids
        menus = page.locator("details.menu > summary:visible")
        for k in range(menus.count()):
            menus.nth(k).scroll_into_view_if_needed()
            menus.nth(k).click()
            expect(page.locator("details.menu[open]")).to_have_count(1)
            until(page, f"() => ({UNREACHABLE})().length === 0")  # a menu is placed after it opens
            assert overflow(page) <= 0
            page.keyboard.press("Escape")


@pytest.mark.slow
def test_the_curve_of_a_canceled_job_ends_where_the_job_ended(open_page: Open, service: Any) -> None:
    page = open_page(service.url)
    generate(page, "coat", steps=1000)
    until(page, "() => Number(scrubber.value) > 2")
    page.locator(VIEWER).get_by_role("button", name="Cancel").click()
    expect(page.locator("#viewer")).to_have_attribute("data-state", "ended")
    path = page.locator("#curve-all").get_attribute("d")
    assert path is not None
    heights = [float(point.split()[1]) for point in re.findall(r"L([\d.]+ [\d.]+)", path)][:-1]
    assert max(heights) < 60, "σ stays high: 100 is the height of σ = 0"
    last = float(re.findall(r"L([\d.]+) 100Z", path)[0])
    assert last < 60, "and the curve covers the steps that were made"


@pytest.mark.slow
def test_cards_of_one_seed_say_in_what_their_jobs_differ(open_page: Open, service: Any) -> None:
    facts = open_page(service.url).evaluate(CARD_FACTS)
    assert facts[:4] == [
        "seed 7\nDDIM\n20 steps",
        "seed 7\nDDIM\n21 steps",
        "seed 7\nHeun\n20 steps",
        "seed 7\nDDIM\n20 steps, guidance 2.5",
    ]
    assert len(set(facts)) == len(facts)


@pytest.mark.slow
def test_noise_levels_in_the_form_take_the_place_of_steps(open_page: Open, service: Any) -> None:
    page = open_page(service.url)
    page.get_by_role("radio", name="digits", exact=True).check()
    page.locator("#more > summary").click()
    page.locator("#sigmas").fill("40, 5, 0.5")
    page.get_by_role("button", name="Generate").click()
    finished(page)
    assert jobs_of(service)[0]["sigmas"] == [40, 5, 0.5]
    expect(page.locator("#cards small")).to_contain_text("3 steps")


@pytest.mark.slow
def test_a_message_about_an_outage_goes_away_when_the_server_is_back(open_page: Open, service: Any) -> None:
    page = open_page(service.url, may_complain=True)
    generate(page, "coat", steps=3)
    finished(page)
    page.route("**/verify", lambda route: route.abort())
    page.route("**/models", lambda route: route.abort())
    page.get_by_role("button", name="Verify").click()
    expect(page.locator("#viewer-note")).to_contain_text("The server does not respond")
    page.unroute("**/models")
    expect(page.locator("#viewer-note")).to_contain_text("is back now. Press the button again")
    page.unroute("**/verify")
    page.get_by_role("button", name="Verify").click()
    expect(page.locator("#viewer-note")).to_contain_text("every byte is the same")


@pytest.mark.slow
def test_a_rate_without_progress_is_not_shown_as_if_it_went_on(open_page: Open, service: Any) -> None:
    assert open_page(service.url).evaluate(RATE) == [None, None, pytest.approx(6.1, abs=0.01)]


@pytest.mark.slow
def test_a_press_that_the_server_could_not_serve_is_sent_when_it_is_back(open_page: Open, service: Any) -> None:
    page = open_page(service.url, may_complain=True)
    expect(page.locator("#status-text")).to_have_text("ready")
    before = len(jobs_of(service))
    page.route("**/generate", lambda route: route.abort())
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#form-error")).to_contain_text("Your request is kept")
    page.unroute("**/generate")
    finished(page)
    expect(page.locator("#form-error")).to_have_text("")
    assert len(jobs_of(service)) == before + 1


@pytest.mark.slow
def test_generate_is_never_silent_without_a_worker(
    open_page: Open, start_service: Callable[..., Any], tmp_path: Path
) -> None:
    own = start_service(tmp_path / "data")
    (worker,) = [pid for pid, command in own.children().items() if "-m denoised.worker" in command]
    os.kill(worker, signal.SIGSTOP)
    try:
        page = open_page(own.url, may_complain=True)
        expect(page.locator("#banner")).to_contain_text("No model is served yet")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#form-error")).to_contain_text("Your request is kept")
    finally:
        os.kill(worker, signal.SIGCONT)
    finished(page)


@pytest.mark.slow
def test_thirty_labels_are_searched_and_fill_rows(open_page: Open, service: Any) -> None:
    labels = ["a rather long name of a thing", *(f"thing {k}" for k in range(28)), "pear"]

    def many(route: Route) -> None:
        models = route.fetch().json()
        route.fulfill(json=[models[0] | {"labels": labels}])

    page = open_page("about:blank")
    page.route("**/models", many)
    page.goto(service.url)
    chips = page.locator("#labels .chip")
    expect(chips).to_have_count(31)
    rows = page.evaluate("new Set([...document.querySelectorAll('#labels .chip')].map((each) => each.offsetTop)).size")
    assert rows <= 14
    page.get_by_role("radio", name="thing 3", exact=True).check()
    page.get_by_label("Search the labels").fill("long")
    expect(page.locator("#labels .chip", has_text="pear")).to_be_hidden()
    expect(page.locator("#labels .chip", has_text="long")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("radio", name="a rather long name of a thing")).to_be_checked()
    page.locator("#more > summary").click()
    page.set_viewport_size({"width": 1280, "height": 700})
    expect(page.get_by_role("button", name="Generate")).to_be_in_viewport()
    assert violations(page) == []


@pytest.mark.slow
def test_a_dropped_picture_brings_its_settings_back_and_is_verified(open_page: Open, service: Any) -> None:
    with service.client() as client:
        body = {"model": "digits", "label": "3", "seed": 77, "steps": 7, "sampler": "heun"}
        picture = client.post("/generate", json=body, headers={"Accept": "image/png"}).content
    page = open_page(service.url)
    expect(page.locator("#status-text")).to_have_text("ready")
    page.evaluate(DROP, ["three.png", "image/png", base64.b64encode(picture).decode()])
    expect(page.locator("#viewer-note")).to_have_text("Verified: made again, every byte is the same.")
    assert page.locator("#seed").input_value() == "77"
    assert page.locator("#steps").input_value() == "7"
    assert page.locator("#sampler").input_value() == "heun"
    expect(page.get_by_role("radio", name="3", exact=True)).to_be_checked()
    page.evaluate(DROP, ["notes.txt", "text/plain", ""])
    expect(page.locator("#form-error")).to_have_text("notes.txt: Only PNG, JPEG and WebP pictures can be used.")


@pytest.mark.slow
def test_each_field_explains_itself_and_a_sampler_warns_of_too_few_steps(open_page: Open, service: Any) -> None:
    page = open_page(service.url)
    page.get_by_role("radio", name="fashion-mnist", exact=True).check()
    page.locator("#more > summary").click()
    expect(page.locator("#sampler optgroup").first).to_have_attribute("label", "Few steps")
    expect(page.locator("#sampler-hint")).to_contain_text("Good with 6 to 20 steps")
    options = page.locator("#sampler option").all_text_contents()
    assert {"DPM++ 2M, good from 15 steps", "UniPC 3, good from 6 steps", "Langevin, good from 100 steps"} <= set(
        options
    )
    assert {"Euler", "LCM"} <= set(options), "what is said of distilled models is not said of all"
    expect(page.locator("#seed-hint")).to_have_text("The first noise is drawn from it. Every request gets a new one.")
    expect(page.locator("#guidance_scale-hint")).to_contain_text("Strength of the label or the prompt")
    expect(page.locator("#steps-hint")).to_contain_text("How often the network is asked")
    expect(page.locator("#model-facts")).to_have_text("28×28 pixels · data: Fashion-MNIST · weights: Apache-2.0")
    page.locator("#spacing").select_option("karras")
    expect(page.locator("#spacing-meaning")).to_have_text("karras: Karras et al. 2022: dense at low noise")
    expect(page.locator("#priority-meaning")).to_contain_text("normal: in the order of arrival")
    page.locator("#sampler").select_option("langevin")
    expect(page.locator("#sampler-warning")).to_contain_text("Langevin needs 100 steps or more; with 6")
    page.locator("#steps").fill("100")
    expect(page.locator("#sampler-warning")).to_have_text("")
