"""The operator's page in a real browser: live figures of workers, models and keys, for those who may see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from denoised.app.http.api_keys import key_hash
from tests.browser.test_playground import overflow, violations
from tests.journeys.conftest import GARMENTS

pytestmark = pytest.mark.browser

Open = Callable[..., Page]

PHONE = {"width": 360, "height": 740}

SIDEWAYS = "all => all.map((it) => it.scrollWidth - it.clientWidth)"


@pytest.fixture(scope="module")
def locked(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with the keys of an operator and of a tenant."""
    folder = tmp_path_factory.mktemp("operator")
    keys = folder / "keys"
    options = (("ops", "operator"), ("shop", "images=20 per_minute=500"))
    keys.write_text("".join(f"{name}:sha256:{key_hash(f'key-of-{name}')} {text}\n" for name, text in options))
    return start_service(folder / "data", environment={"DENOISED_API_KEYS_FILE": str(keys)})


def enter(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")


@pytest.mark.slow
def test_an_operator_sees_workers_models_and_what_all_keys_use(open_page: Open, locked: Any) -> None:
    page = open_page(f"{locked.url}/operator", may_complain=True)  # about the 401
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    enter(page, "a-guess")
    expect(page.locator("#login-error")).to_contain_text("The API key is unknown.")
    with locked.client() as client:
        headers = {"Authorization": "Bearer key-of-shop", "Prefer": "wait=60"}
        assert client.post("/generate", json={**GARMENTS, "n": 3, "steps": 4}, headers=headers).status_code == 200
    enter(page, "key-of-ops")
    row = page.locator("#usage tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("shop")
    expect(row.locator("td", has_text="3 of 20")).to_be_visible()
    expect(page.locator("#models")).to_contain_text("fashion-mnist")
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    expect(page.locator("#workers")).to_contain_text("0 of 16")
    expect(page.locator("#totals")).to_contain_text("1 worker")
    assert page.locator(".scrolled").evaluate_all(SIDEWAYS) == [0, 0, 0]
    assert page.url == f"{locked.url}/operator"
    assert not [url for url in requested if "key-of" in url or not url.startswith((locked.url, "data:"))]
    with locked.client() as client:
        assert client.post("/generate", json={**GARMENTS, "n": 2, "steps": 4}, headers=headers).status_code == 200
    expect(row.locator("td", has_text="5 of 20")).to_be_visible()  # without a reload
    page.get_by_role("button", name="Pause").click()
    before = page.locator("#totals").inner_text()
    page.wait_for_timeout(2500)
    assert page.locator("#totals").inner_text() == before
    page.get_by_role("button", name="Use another key").click()
    expect(page.locator("#login")).to_be_visible()
    expect(page.locator("#form")).to_be_hidden()


@pytest.mark.slow
def test_another_key_sees_its_own_quotas_only(open_page: Open, locked: Any) -> None:
    page = open_page(f"{locked.url}/operator", may_complain=True)  # about the 401 and the 403
    enter(page, "key-of-shop")
    expect(page.locator("#usage-note")).to_contain_text("only its own quotas")
    expect(page.locator("#usage tbody tr")).to_have_count(1)
    expect(page.locator("#usage")).not_to_contain_text("ops")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing_serious_and_without_keys_the_page_needs_none(
    scheme: str, open_page: Open, service: Any
) -> None:
    page = open_page(f"{service.url}/operator", color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator("#usage-note")).to_contain_text("no API keys")
    expect(page.locator("#models tbody tr").first).to_be_visible()
    assert violations(page) == []
    page.set_viewport_size(PHONE)
    assert overflow(page) <= 0
    assert set(page.locator(".scrolled").evaluate_all(SIDEWAYS)) == {0}, "nothing has to be moved sideways on a phone"
    expect(page.locator("#workers").get_by_role("cell", name="0 of 16")).to_be_visible()
    assert violations(page) == []
