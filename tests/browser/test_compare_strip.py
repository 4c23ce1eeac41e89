"""One seed over steps, guidance or samplers: the requests, the captions, and the scrubber that moves all pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_first_minute import PHONE
from tests.browser.test_playground import SHIFTS, finished, generate, jobs_of, overflow, until, violations

pytestmark = pytest.mark.browser

Open = Callable[..., Page]

CANVASES = "() => [...document.querySelectorAll('#strip canvas')].map((each) => each.toDataURL())"
# The requests of a comparison of a job, for a card whose samplers take different fields.
REQUESTS = """async ([job, axis]) => {
  const { requestsOf } = await import("/playground/stage/strip.js");
  const taken = { spacing_samplers: ["ddim", "heun"], karras_samplers: ["ddim"], eta_samplers: ["ddim"] };
  const card = { timesteps: 30, samplers: ["ddim", "heun", "lcm"], ...taken };
  return requestsOf(job, card, axis, Object.keys(job));
}"""
JOB = {
    "label": "bag",
    "n": 4,
    "seed": 9,
    "sampler": "lcm",
    "steps": 7,
    "eta": 0.5,
    "guidance_scale": 4.0,
    "guidance_interval": [0.2, 2],
    "spacing": "karras",
    "karras": True,
    "sigmas": [9, 1],
}


def compared(page: Page, axis: str, pictures: int) -> list[str]:
    """Compare the picture in the viewer, and wait for all. Returns the captions."""
    page.locator("#viewer-actions").get_by_text("Compare", exact=True).click()
    page.locator("#viewer-actions").get_by_role("button", name=axis, exact=True).click()
    expect(page.locator("#strip figure")).to_have_count(pictures)
    expect(page.locator("#strip small", has_text="evaluation")).to_have_count(pictures)
    expect(page.locator("#strip small", has_text="as chosen")).to_have_count(1)
    return page.locator("#strip strong").all_text_contents()


@pytest.mark.slow
def test_one_seed_is_compared_over_steps_under_one_scrubber(open_page: Open, service: Any) -> None:
    page = open_page(service.url)
    generate(page, "bag", seed=7, steps=4)
    finished(page)
    captions = compared(page, "Steps", 7)
    assert captions == ["1 step", "2 steps", "4 steps", "5 steps", "10 steps", "20 steps", "50 steps"]
    expect(page.locator("#strip small", has_text="differs by")).to_have_count(6)
    expect(page.locator("#strip figure.own strong")).to_have_text("4 steps")
    jobs = jobs_of(service)[:7]
    assert {job["seed"] for job in jobs} == {7}
    assert [job["steps"] for job in jobs] == [50, 20, 10, 5, 4, 2, 1]
    done = page.evaluate(CANVASES)
    assert len(set(done)) == 7
    page.reload()
    expect(page.locator("#strip-title")).to_have_text("Seed 7 over steps")
    expect(page.locator("#strip small", has_text="differs by")).to_have_count(6)
    until(page, f"before => ({CANVASES})().every((each, k) => each === before[k])", done)
    scrubber = page.get_by_role("slider", name="From noise to picture")
    scrubber.press("Home")
    expect(scrubber).to_have_attribute("aria-valuetext", "0 % of the way")
    until(page, f"before => ({CANVASES})().slice(1).every((each, k) => each !== before[k + 1])", done)
    page.get_by_role("radio", name="noisy xt").check(force=True)
    # the same noise; of 50 steps, frames show every second one
    until(page, f"() => ({CANVASES})().slice(1, 6).every((each, k, all) => each === all[0])")
    page.locator("#strip").get_by_role("button", name="Play").click()
    expect(scrubber).to_have_attribute("aria-valuetext", "finished")
    until(page, f"before => JSON.stringify(({CANVASES})()) === JSON.stringify(before)", done)
    assert violations(page) == []
    page.locator("#strip").get_by_role("button", name="Close").click()
    expect(page.locator("#strip")).to_be_hidden()


@pytest.mark.slow
def test_requests_leave_out_what_a_sampler_does_not_take(open_page: Open, service: Any) -> None:
    page = open_page(service.url)
    steps = page.evaluate(REQUESTS, [JOB, "steps"])
    assert [each["steps"] for each in steps] == [1, 2, 5, 7, 10, 20], "50 is over the model's timesteps"
    assert all(each["n"] == 1 and "sigmas" not in each for each in steps)
    samplers = {each["sampler"]: each for each in page.evaluate(REQUESTS, [JOB, "samplers"])}
    assert list(samplers) == ["lcm", "ddim", "heun"], "the job's own is the first"
    taken = {name: {"spacing", "sigmas", "karras", "eta"} & each.keys() for name, each in samplers.items()}
    assert taken == {"lcm": set(), "ddim": {"spacing", "sigmas", "karras", "eta"}, "heun": {"spacing", "sigmas"}}
    guided = page.evaluate(REQUESTS, [JOB, "guidance"])
    assert [each["guidance_scale"] for each in guided] == [1, 2, 3, 4, 5, 8]
    assert ["guidance_interval" in each for each in guided] == [False, True, True, True, True, True]


@pytest.mark.slow
def test_guidance_and_samplers_are_compared_on_a_phone(open_page: Open, service: Any) -> None:
    page = open_page(service.url, viewport=PHONE, color_scheme="dark", reduced_motion="reduce")
    generate(page, "anything", seed=3, steps=3)
    finished(page)
    page.locator("#viewer-actions").get_by_text("Compare", exact=True).click()
    expect(page.locator("#viewer-actions").get_by_role("button", name="Guidance", exact=True)).to_have_count(0)
    page.keyboard.press("Escape")
    generate(page, "sandal", seed=3)
    finished(page)
    assert page.evaluate(SHIFTS) < 0.1
    assert compared(page, "Guidance", 5) == ["no guidance", "guidance 2", "guidance 3", "guidance 5", "guidance 8"]
    assert compared(page, "Samplers", 6)[0] == "UniPC 3"
    assert violations(page) == []
    assert overflow(page) <= 0


@pytest.mark.slow
def test_a_comparison_goes_on_after_an_outage(open_page: Open, service: Any) -> None:
    page = open_page(service.url, may_complain=True)
    generate(page, "bag", seed=7, steps=2)
    finished(page)
    page.route("**/generate", lambda route: route.abort())
    page.locator("#viewer-actions").get_by_text("Compare", exact=True).click()
    page.locator("#viewer-actions").get_by_role("button", name="Guidance", exact=True).click()
    expect(page.locator("#strip .error")).to_contain_text("The comparison goes on as soon as the server is back")
    page.unroute("**/generate")
    expect(page.locator("#strip small", has_text="evaluation")).to_have_count(5)
    expect(page.locator("#strip .error")).to_have_text("")
