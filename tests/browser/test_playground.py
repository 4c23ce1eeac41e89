"""The playground in a real browser, with the bundled models."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from denoised.jobs.request import PictureRequest
from tests.journeys.conftest import TIMEOUT, wait_for

pytestmark = pytest.mark.browser

Open = Callable[..., Page]

PAGE_BYTES = 200_000  # the page and everything that it loads at first
VIEWER = "section.viewer"
expect.set_options(timeout=TIMEOUT * 1000)


# Records what the page shows in every animation frame of a running job.
WATCH = """() => {
  window.watched = { titles: [], rates: [], pictures: [] };
  const record = () => {
    const done = Number(ring.ariaValueNow);
    if (viewer.dataset.state === "live") {
      watched.titles.push(document.title);
      watched.rates.push(rate.textContent);
      if (0 < done && done < 80) watched.pictures.push([xt.toDataURL(), x0.toDataURL()]);
    }
    requestAnimationFrame(record);
  };
  record();
}"""


# The page's cumulative layout shift, as web.dev defines it.
SHIFTS = """() => new Promise((resolve) => {
  let sum = 0;
  const add = (list) => list.getEntries().forEach((each) => { if (!each.hadRecentInput) sum += each.value; });
  new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });
  setTimeout(() => resolve(sum), 50);
})"""


# By how many pixels the viewer overlaps the gallery, at every scroll position.
OVERLAPS = """() => {
  const found = [];
  for (let y = 0; y <= document.documentElement.scrollHeight - innerHeight; y += 20) {
    scrollTo({ top: y, behavior: "instant" });
    const gallery = document.querySelector(".gallery").getBoundingClientRect();
    found.push(viewer.getBoundingClientRect().bottom - gallery.top);
  }
  return found;
}"""


@pytest.fixture
def quiet(service: Any) -> Iterator[Any]:
    """The shared service. Jobs that a test leaves running are canceled after it."""
    yield service
    for job in jobs_of(service):
        if job["status"] in ("queued", "running"):
            with service.client() as client:
                client.delete(f"/jobs/{job['id']}")


def generate(page: Page, label: str, **fields: object) -> None:
    """Fill in the form as a visitor does, then press Ctrl-Enter.

    A layout shift after a visitor's own click does not count as one, so the test clicks instead of running a script.
    """
    page.get_by_role("radio", name="fashion-mnist", exact=True).check()
    page.get_by_role("radio", name=label, exact=True).check()
    if fields and not page.locator("#more").evaluate("more => more.open"):
        page.locator("#more > summary").click()
    for name, value in fields.items():
        page.locator(f"#{name}").fill(str(value))
    page.keyboard.press("Control+Enter")


def finished(page: Page) -> None:
    expect(page.locator("#viewer")).to_have_attribute("data-state", "ended")
    expect(page.locator("#step-text")).to_contain_text("Finished")
    until(page, "xt.toDataURL() === x0.toDataURL()")  # both show the picture once it is fetched


def until(page: Page, expression: str, argument: object = None) -> None:
    """Wait until a JavaScript expression is true. The page forbids the text evaluation of `wait_for_function`."""
    wait_for(lambda: page.evaluate(expression, argument), expression)


def pixels(page: Page, canvas: str) -> str:
    """The current content of a canvas."""
    return str(page.locator(canvas).evaluate("canvas => canvas.toDataURL()"))


def jobs_of(service: Any) -> list[dict[str, Any]]:
    with service.client() as client:
        return list(client.get("/jobs", params={"limit": 100}).json()["jobs"])


def submitted(service: Any, **body: Any) -> dict[str, Any]:
    """The job of a request that names nothing else."""
    with service.client() as client:
        return dict(client.post("/generate", json=body).json())


TRANSITIONS_END = """() => {
  const transitions = document.getAnimations().filter((each) => each instanceof CSSTransition);
  return Promise.all(transitions.map((each) => each.finished.catch(() => {}))).then(() => true);
}"""


def violations(page: Page) -> list[str]:
    """The violations that axe-core rates serious or critical; they include all of WCAG AA."""
    page.evaluate(TRANSITIONS_END)  # a color on its way to another has a contrast of its own
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def overflow(page: Page) -> int:
    """The number of pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_a_picture_is_watched_scrubbed_and_downloaded(open_page: Open, quiet: Any, tmp_path: Path) -> None:
    received: list[int] = []
    page = open_page("about:blank")
    page.on("response", lambda response: received.append(len(response.body()) if response.status == 200 else 0))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(quiet.url)
    expect(page.locator("#status-text")).to_have_text("ready")
    assert 20_000 < sum(received) < PAGE_BYTES
    assert page.title() == "denoised"

    noise = pixels(page, "#xt")
    page.evaluate(WATCH)
    generate(page, "sneaker", seed=7, steps=120)
    finished(page)
    watched = page.evaluate("watched")
    assert "1 running – denoised" in watched["titles"]
    assert any(re.search(r"\d+ evaluations/s", words) for words in watched["rates"])
    assert len(watched["pictures"]) > 5
    assert all(noise != xt != x0 for xt, x0 in watched["pictures"])
    picture = pixels(page, "#xt")
    assert picture not in [xt for xt, _ in watched["pictures"]]
    expect(page.locator("#live")).to_have_text("sneaker, 1 picture: finished")
    assert page.title() == "denoised"

    scrubber = page.locator("#scrubber")
    scrubber.focus()
    page.keyboard.press("Home")
    expect(scrubber).to_have_attribute(
        "aria-valuetext", re.compile(r"^Step 2 of 120 · noise σ (1|0\.99\d*), t = 9\d\d$")
    )
    page.keyboard.press("ArrowRight")
    expect(scrubber).to_have_attribute("aria-valuetext", re.compile(r"^Step 4 of 120"))
    until(page, "before => xt.toDataURL() !== before", picture)
    page.keyboard.press("End")
    expect(scrubber).to_have_attribute("aria-valuetext", "Finished · step 120 of 120 · noise σ 0")
    until(page, "before => xt.toDataURL() === before", picture)
    page.get_by_role("button", name="Play the animation back and forth").click()
    until(page, "Number(scrubber.value) < scrubber.max / 2")
    page.get_by_role("button", name="Play the animation back and forth").click()

    (job,) = [job for job in jobs_of(quiet) if job["seed"] == 7 and job["steps"] == 120]
    with page.expect_download() as saving:
        page.get_by_role("button", name="Download", exact=True).click()
    assert saving.value.suggested_filename == "sneaker-7.png"
    assert hashlib.sha256(Path(saving.value.path()).read_bytes()).hexdigest() == job["images"][0]["sha256"]
    for words, format in (("WebP", "WEBP"), ("GIF", "GIF"), ("APNG", "PNG")):
        page.locator(VIEWER).get_by_text("Animation", exact=True).click()
        with page.expect_download() as saving:
            page.locator(VIEWER).get_by_role("button", name=words, exact=True).click()
        with Image.open(saving.value.path()) as animation:
            assert animation.format == format
            assert animation.n_frames == 60

    page.get_by_role("button", name="Verify").click()
    expect(page.locator("#viewer-note")).to_have_text("Verified: made again, every byte is the same.")
    assert {url for url in asked if not url.startswith((quiet.url, "data:", "blob:"))} == set()
    assert page.evaluate(SHIFTS) < 0.01


@pytest.mark.slow
def test_copied_commands_make_the_same_bytes_again(open_page: Open, quiet: Any, tmp_path: Path) -> None:
    page = open_page(quiet.url, permissions=["clipboard-read", "clipboard-write"])
    generate(page, "ankle boot", seed=21, steps=3)
    finished(page)
    made = {image["sha256"] for job in jobs_of(quiet)[:1] for image in job["images"]}
    for words, program in (("as curl", ["bash", "-e", "-c"]), ("as Python", [sys.executable, "-c"])):
        folder = tmp_path / program[0].rsplit("/", 1)[-1]
        folder.mkdir()
        page.locator(VIEWER).get_by_text("Copy", exact=True).click()
        page.locator(VIEWER).get_by_role("button", name=words).click()
        expect(page.locator("#viewer-note")).to_contain_text("to the clipboard")
        copied = page.evaluate("navigator.clipboard.readText()")
        subprocess.run([*program, copied], cwd=folder, check=True, timeout=TIMEOUT)
        assert {hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("ankle-boot-21.png")} == made


@pytest.mark.slow
def test_a_double_click_makes_one_job_and_the_next_click_uses_another_seed(open_page: Open, quiet: Any) -> None:
    page = open_page(quiet.url)
    before = len(jobs_of(quiet))
    page.get_by_role("radio", name="digits", exact=True).check()
    page.get_by_role("button", name="Generate").dblclick()
    finished(page)
    assert len(jobs_of(quiet)) == before + 1
    assert page.locator("#cards > li").count() == 1
    first = page.locator("#seed").input_value()
    page.wait_for_timeout(900)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#cards > li")).to_have_count(2)
    assert page.locator("#seed").input_value() != first
    page.wait_for_timeout(900)
    page.get_by_role("button", name="Keep this seed").click()
    kept = page.locator("#seed").input_value()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#cards > li")).to_have_count(3)
    assert page.locator("#seed").input_value() == kept
    newest = jobs_of(quiet)[:2]
    assert {job["seed"] for job in newest} == {int(kept)}


def test_running_and_queued_jobs_are_canceled(open_page: Open, quiet: Any) -> None:
    page = open_page(quiet.url)
    generate(page, "coat", steps=1000, n=16)
    expect(page.locator("#status-text")).to_have_text("1 running")
    with quiet.client() as client:
        body = {"model": "fashion-mnist", "steps": 400, "n": 16}
        for _ in range(6):
            client.post("/generate", json=body)
        page.wait_for_timeout(900)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#status-text")).to_have_text("1 running · 1 queued")
        expect(page.locator("#step-text")).to_contain_text("in the queue")
        for _ in ("the queued one", "the running one"):
            page.locator(VIEWER).get_by_role("button", name="Cancel").click()
            expect(page.locator("#cards > li[aria-current=true] .badge")).to_have_text("canceled")
            page.locator("#cards > li .thumbnail").last.click()
        expect(page.locator("#status-text")).to_have_text("ready")
    mine = [job for job in jobs_of(quiet) if job["label"] == "coat"]
    assert [job["status"] for job in mine] == ["canceled", "canceled"]


def test_a_reload_keeps_the_gallery_and_follows_running_jobs_again(open_page: Open, quiet: Any) -> None:
    page = open_page(quiet.url)
    generate(page, "bag", seed=5, steps=10)
    finished(page)
    done = pixels(page, "#xt")
    generate(page, "dress", seed=6, steps=1000)
    expect(page.locator("#status-text")).to_have_text("1 running")
    page.reload()
    expect(page.locator("#cards > li strong")).to_have_text(["dress", "bag"])
    expect(page.locator("#status-text")).to_have_text("1 running")
    expect(page.locator("#viewer-title")).to_have_text("dress")
    before = page.evaluate("Number(scrubber.value)")
    until(page, "before => Number(scrubber.value) > before", before)
    page.locator(VIEWER).get_by_role("button", name="Cancel").click()
    expect(page.locator("#status-text")).to_have_text("ready")
    page.get_by_role("button", name="Show bag, seed 5").click()
    until(page, "before => xt.toDataURL() === before", done)
    finished(page)
    expect(page.locator("#scrubber")).to_be_enabled()  # the frames have arrived, too
    page.locator("#scrubber").press("Home")
    expect(page.locator("#step-text")).to_contain_text("Step 1 of 10")
    page.get_by_role("button", name="Vary").click()
    expect(page.locator("#viewer-facts")).to_contain_text("seeds 1 – 9")
    finished(page)
    page.locator("summary[aria-label='More actions for bag, seeds 1 – 9']").click()
    page.get_by_role("button", name="Remove from this list").click()
    expect(page.locator("#cards > li strong")).to_have_text(["dress", "bag"])


def test_errors_are_shown_next_to_their_fields(open_page: Open, quiet: Any) -> None:
    page = open_page(quiet.url, may_complain=True)  # Chromium logs every 422 to the console
    generate(page, "shirt", steps=5000)
    expect(page.locator("#steps-error")).to_have_text("5000 is over 1000, the model's number of training timesteps.")
    expect(page.locator("#steps")).to_be_focused()
    expect(page.locator("#steps")).to_have_attribute("aria-invalid", "true")
    page.locator("#steps").fill("4")
    page.keyboard.press("Control+Enter")
    finished(page)
    expect(page.locator("#steps-error")).to_have_text("")
    page.locator("#seed").fill("-1")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#seed-error")).to_contain_text("A seed is a whole number from 0 to")


def test_text_from_any_source_is_shown_as_text(open_page: Open, quiet: Any) -> None:
    """ComfyUI#6034: stored text is never read as HTML."""
    with quiet.client() as client:
        job = client.post("/generate", json={"model": "digits", "steps": 1}, headers={"Prefer": "wait=60"}).json()
    evil = "<img src=x onerror=document.title='owned'>"
    stored = json.dumps([job | {"label": evil, "sampler": evil}])
    page = open_page(quiet.url, storage={"denoised.jobs": stored})
    expect(page.locator("#cards > li strong")).to_have_text(evil)
    expect(page.locator("#viewer-title")).to_have_text(evil)
    assert page.locator("img").count() == 0
    assert page.title() == "denoised"


@pytest.mark.parametrize(
    "size",
    [pytest.param((1280, 720), marks=pytest.mark.slow), pytest.param((1024, 600), marks=pytest.mark.slow), (360, 780)],
)
def test_the_viewer_never_overlaps_the_gallery(size: tuple[int, int], open_page: Open, quiet: Any) -> None:
    with quiet.client() as client:
        body = {"model": "digits", "steps": 1}
        job = client.post("/generate", json=body, headers={"Prefer": "wait=60"}).json()
    stored = json.dumps([job | {"id": f"{k:032x}"} for k in range(8)])  # more than fit into the window
    window = {"width": size[0], "height": size[1]}
    page = open_page(quiet.url, may_complain=True, storage={"denoised.jobs": stored}, viewport=window)
    expect(page.locator("#cards > li")).to_have_count(8)
    expect(page.locator("#form")).to_be_visible()
    overlaps = page.evaluate(OVERLAPS)
    assert len(overlaps) > 10
    assert max(overlaps) <= 0


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing_serious_in_either_color_scheme_or_on_a_phone(
    scheme: str, open_page: Open, quiet: Any
) -> None:
    page = open_page(quiet.url, color_scheme=scheme, reduced_motion="reduce")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert lightness > 200 if scheme == "light" else lightness < 50
    generate(page, "sandal", seed=3, steps=6, n=4)
    finished(page)
    chosen, by_default = jobs_of(quiet)[0], submitted(quiet, label="sandal", seed=3, n=4)
    names = [each.name for each in fields(PictureRequest)]
    assert {name: chosen[name] for name in names} == {name: by_default[name] for name in names}
    assert (chosen["sampler"], chosen["spacing"], chosen["guidance_interval"]) == ("unipc_3", "geometric", [0.2, 2.0])
    assert violations(page) == []
    page.set_viewport_size({"width": 360, "height": 780})
    assert overflow(page) <= 0
    page.locator("summary[aria-label^='More actions for']").click()
    assert violations(page) == []
    assert overflow(page) <= 0


@pytest.mark.slow
def test_a_restart_of_the_server_is_shown_and_the_job_continues(open_page: Open, quiet: Any) -> None:
    """AUTOMATIC1111#3150: no button is stuck after a restart."""
    page = open_page(quiet.url, may_complain=True)  # Chromium logs every broken connection
    generate(page, "pullover", steps=1000)
    expect(page.locator("#status-text")).to_have_text("1 running")
    (api,) = [pid for pid, command in quiet.children().items() if "app api" in command]
    os.kill(api, signal.SIGKILL)
    expect(page.locator("#banner")).to_contain_text("The server does not respond")
    assert "server unreachable" in page.title()
    with quiet.client() as client:
        wait_for(lambda: _is_ready(client), "the server")
    back = time.monotonic()
    expect(page.locator("#banner")).to_be_hidden()
    generate(page, "trouser", seed=8, steps=4)
    expect(page.locator("#cards > li strong")).to_have_text(["trouser", "pullover"])
    assert time.monotonic() - back < 10
    finished(page)
    page.locator("#cards > li .thumbnail").last.click()
    finished(page)
    assert page.evaluate("Number(scrubber.max)") == 58, "every 17th of 1000 steps, including those during the restart"


def _is_ready(client: Any) -> bool:
    try:
        return bool(client.get("/readyz").status_code == 200)
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_the_page_asks_for_a_key_and_keeps_it_for_the_tab(
    open_page: Open, start_service: Callable[..., Any], tmp_path: Path
) -> None:
    locked = start_service(tmp_path / "data", environment={"DENOISED_API_KEYS": "a-key-of-ours"})
    page = open_page(locked.url, may_complain=True)  # about the wrong key's 401
    expect(page.locator("#login")).to_be_visible()
    expect(page.locator("#form")).to_be_hidden()
    expect(page.locator("#status-text")).to_have_text("key needed")
    assert violations(page) == []
    page.get_by_label("API key").fill("a-guess")
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_contain_text("The API key is unknown.")
    page.get_by_label("API key").fill("a-key-of-ours")
    page.keyboard.press("Enter")
    expect(page.locator("#status-text")).to_have_text("ready")
    generate(page, "sneaker", seed=7, steps=50)
    finished(page)
    page.get_by_role("button", name="Verify").click()
    expect(page.locator("#viewer-note")).to_have_text("Verified: made again, every byte is the same.")
    page.reload()
    expect(page.locator("#cards > li strong")).to_have_text(["sneaker"])
    expect(page.locator("#status-text")).to_have_text("ready")
    assert page.evaluate("JSON.stringify(localStorage).includes('a-key-of-ours')") is False
    page.get_by_role("button", name="Remove the key").click()
    expect(page.locator("#login")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    assert "a-key-of-ours" not in locked.log.read_text()


@pytest.mark.slow
def test_a_missing_worker_is_explained(open_page: Open, start_service: Callable[..., Any], tmp_path: Path) -> None:
    service = start_service(tmp_path / "data")
    (worker,) = [pid for pid, command in service.children().items() if "-m denoised.worker" in command]
    os.kill(worker, signal.SIGSTOP)
    try:
        page = open_page(service.url)
        expect(page.locator("#banner")).to_contain_text("No model is served yet")
        assert page.title() == "loading model – denoised"
        expect(page.locator("#banner")).to_contain_text("No worker serves a model")
        assert page.title() == "no worker – denoised"
    finally:
        os.kill(worker, signal.SIGCONT)
    expect(page.locator("#banner")).to_be_hidden()
    generate(page, "sneaker", seed=7, steps=4)
    finished(page)
