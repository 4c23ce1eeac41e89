"""Drives the distribution's Chromium with Playwright, and checks that the page logs nothing to the console."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, BrowserType, Error, Page, sync_playwright

from tests.journeys.conftest import TIMEOUT, service, start_service

__all__ = ["service", "start_service"]  # fixtures of tests/journeys, for this folder

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
DESKTOP = {"width": 1280, "height": 900}

COMPLAINTS = ("error", "warning", "assert")  # types of console messages that fail a test

Open = Callable[..., Page]


class Chromium:
    """A browser that is started again after a crash, which is not the page's fault (a machine short of memory)."""

    def __init__(self, chromium: BrowserType, program: str) -> None:
        self._chromium = chromium
        self._program = program
        self._browser = self._launch()

    def _launch(self) -> Browser:
        return self._chromium.launch(executable_path=self._program, args=["--no-sandbox"])

    def open(self, visit: Callable[[Browser], Page]) -> Page:
        """Call `visit` with the browser, and once more with a new one if the browser has exited meanwhile."""
        try:
            return visit(self._browser)
        except Error:
            if self._browser.is_connected():
                raise
            self._browser = self._launch()
            return visit(self._browser)

    def close(self) -> None:
        self._browser.close()


@pytest.fixture(scope="package")
def browser() -> Iterator[Chromium]:
    """One browser for the tests of this folder that follow each other in a process.

    With session scope, Playwright's event loop would run during every later test.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is installed (Debian: apt install chromium)")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if version.returncode != 0:
        pytest.skip(f"{program} does not start here: {version.stderr.strip()[-200:]}")
    with sync_playwright() as playwright:
        browser = Chromium(playwright.chromium, program)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Chromium) -> Iterator[Open]:
    """`open_page(url, …)` opens a page as a first-time visitor. Options are those of a Playwright context.

    The test fails if the page logs an error or a warning, unless `may_complain=True`.
    """
    contexts: list[BrowserContext] = []
    strict: list[list[str]] = []

    def open_page(url: str, **options: Any) -> Page:
        return browser.open(lambda browser: visit(browser, url, **options))

    def visit(
        browser: Browser, url: str, *, may_complain: bool = False, storage: dict[str, str] | None = None, **options: Any
    ) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, "accept_downloads": True, **options})
        contexts.append(context)
        context.set_default_timeout(TIMEOUT * 1000)
        for name, value in (storage or {}).items():
            context.add_init_script(f"localStorage.getItem({name!r}) ?? localStorage.setItem({name!r}, {value!r})")
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type in COMPLAINTS else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if not may_complain:
            strict.append(complaints)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [complaint for complaints in strict for complaint in complaints] == []
