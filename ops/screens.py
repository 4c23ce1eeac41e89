"""Take the README's screenshots of the playground of a running server: python ops/screens.py [http://127.0.0.1:8000]

Needs Chromium (Debian: apt install chromium).
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
DESKTOP, PHONE, GAP = {"width": 1280, "height": 960}, {"width": 360, "height": 960}, 40
GALLERY = [("bag", 5, 1, 20), ("coat", 9, 9, 20), ("sandal", 2, 1, 20), ("t-shirt", 4, 4, 20), ("dress", 3, 1, 20)]
BOOTS, SNEAKER = ("ankle boot", 31, 9, 40), ("sneaker", 7, 1, 400)
HALF_WAY = "Number(document.getElementById('ring').ariaValueNow) >= 62"
DONE = "document.getElementById('step-text').textContent.startsWith('Finished')"
DOUBLE_CLICK_MS = 900  # a second press within this time counts as a double click


def main() -> None:
    url = next(iter(sys.argv[1:]), "http://127.0.0.1:8000")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program is not None, "Chromium is not installed (Debian: apt install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        day = open_page(browser, url, color_scheme="light", viewport=DESKTOP)
        for request in (*GALLERY, BOOTS):
            submit(day, *request)
            wait_until(day, DONE)
        submit(day, *SNEAKER)
        wait_until(day, HALF_WAY)
        save_side_by_side([screenshot(day)], "playground.webp")
        wait_until(day, DONE)
        storage = day.context.storage_state()
        night = {"color_scheme": "dark", "storage_state": storage, "reduced_motion": "reduce"}
        wide = select_boots(open_page(browser, url, viewport=DESKTOP, **night), place=None)
        narrow = select_boots(open_page(browser, url, viewport=PHONE, **night), place=14)
        save_side_by_side([wide, narrow], "playground-dark.webp")
        browser.close()


def open_page(browser: Browser, url: str, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.goto(url)
    page.locator("#labels .chip").first.wait_for()
    return page


def submit(page: Page, label: str, seed: int, n: int, steps: int) -> None:
    page.get_by_role("radio", name=label, exact=True).check()
    page.locator("#more").evaluate("more => more.open = true")
    for name, value in (("seed", seed), ("n", n), ("steps", steps)):
        page.locator(f"#{name}").fill(str(value))
    page.locator("#more").evaluate("more => more.open = false")
    page.wait_for_timeout(DOUBLE_CLICK_MS)
    page.keyboard.press("Control+Enter")
    page.locator("#viewer[data-state=live]").wait_for()


def select_boots(page: Page, place: int | None) -> Image.Image:
    """A screenshot of the boots, at a position of the scrubber or finished."""
    page.locator("#cards .thumbnail").nth(1).click()
    wait_until(page, f"{DONE} && Number(scrubber.max) > 30")
    if place is not None:
        page.locator("#scrubber").evaluate(
            "(it, place) => { it.value = place; it.dispatchEvent(new Event('input')); }", place
        )
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    return screenshot(page)


def wait_until(page: Page, expression: str) -> None:
    """Wait for a condition. Playwright's own `wait_for_function` uses eval, which the page's CSP forbids."""
    while not page.evaluate(expression):
        time.sleep(0.02)


def screenshot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def save_side_by_side(shots: list[Image.Image], name: str) -> None:
    """Save screenshots side by side."""
    width = sum(each.width for each in shots) + GAP * (len(shots) - 1)
    sheet = Image.new("RGBA", (width, shots[0].height))
    left = 0
    for each in shots:
        sheet.paste(each, (left, 0))
        left += each.width + GAP
    sheet.save(PICTURES / name, lossless=True, method=6)  # the gap stays transparent
    print(PICTURES / name, (PICTURES / name).stat().st_size, "bytes")


if __name__ == "__main__":
    main()
