"""Pictures in: a file, a drop or an earlier picture as the start, a painted mask, and before and after."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.browser.test_first_minute import DROP, PHONE
from tests.browser.test_playground import finished, jobs_of, overflow, violations

pytestmark = pytest.mark.browser

Open = Callable[..., Page]

# The number of pixels that a brush of a diameter covers, in the middle and in a line.
BRUSH = """async () => {
  const { Mask } = await import("/playground/form/mask.js");
  const count = (from, to, diameter) => {
    const mask = new Mask(64, 64);
    mask.stroke(from, to, diameter, 1);
    return mask.pixels.reduce((sum, each) => sum + each, 0);
  };
  const dot = (place, diameter) => count(place, place, diameter);
  return [dot([32, 32], 20), count([16, 32], [48, 32], 20), dot([32.5, 32.5], 0.1), dot([-9, -9], 4)];
}"""


def garment(size: int = 28, ink: int = 200) -> bytes:
    """A gray PNG with a bright rectangle."""
    pixels = np.zeros((size, size), np.uint8)
    pixels[size // 4 : -size // 4, size // 3 : -size // 3] = ink
    return encoded(Image.fromarray(pixels), "png")


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def opened(open_page: Open, service: Any, **options: Any) -> Page:
    page = open_page(service.url, **options)
    page.get_by_role("radio", name="fashion-mnist", exact=True).check()
    page.get_by_role("radio", name="bag", exact=True).check()
    return page


def choose(page: Page, picture: bytes, name: str = "garment.png", kind: str = "image/png") -> None:
    page.locator("#image-file").set_input_files([{"name": name, "mimeType": kind, "buffer": picture}])
    expect(page.locator(".editor")).to_be_visible()


def drop(page: Page, picture: bytes, name: str, kind: str) -> None:
    page.evaluate(DROP, [name, kind, base64.b64encode(picture).decode()])


def paint(page: Page, *path: tuple[float, float]) -> None:
    """Drag the brush along a path; 0 … 1 across the picture."""
    page.locator(".overlay").scroll_into_view_if_needed()
    box = page.locator(".overlay").bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in path]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def made(service: Any, job: dict[str, Any]) -> np.ndarray:
    with service.client() as client:
        return np.asarray(Image.open(io.BytesIO(client.get(job["images"][0]["url"]).content)))


def test_a_painted_part_is_made_anew_the_rest_is_kept_and_both_are_compared(open_page: Open, service: Any) -> None:
    page = opened(open_page, service)
    choose(page, garment())
    expect(page.locator(".mask-tools [role=status]")).to_have_text(
        "Nothing is painted: the whole picture is made anew."
    )
    paint(page, (0.5, 0.3), (0.5, 0.7))
    expect(page.locator(".mask-tools [role=status]")).to_contain_text("of the picture is made anew")
    page.locator("#strength").fill("1")
    page.locator("#generate").click()
    finished(page)
    expect(page.locator("#viewer-facts")).to_contain_text("from a picture, strength 1, masked")
    job = jobs_of(service)[0]
    assert job["image"].startswith("sha256:")
    assert (job["strength"], job["label"]) == (1, "bag")
    before, after = np.asarray(Image.open(io.BytesIO(garment()))), made(service, job)
    changed = before != after
    assert changed[:, 12:16].any(), "what was painted is new"
    assert not changed[:, :8].any(), "and what was not painted is kept exactly"
    assert not changed[:, 20:].any()

    page.get_by_role("button", name="Before and after").click()
    slider = page.get_by_role("slider", name="Before and after")
    expect(slider).to_have_attribute("aria-valuetext", "50 % before, 50 % after")
    slider.press("Home")
    slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "1 % before, 99 % after")
    assert "99%" in page.locator(".before").evaluate("it => getComputedStyle(it).clipPath")
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Repeat").click()
    expect(page.locator("#cards > li")).to_have_count(2)
    finished(page)
    again = jobs_of(service)[0]
    assert again["id"] != job["id"]
    assert again["images"][0]["sha256"] == job["images"][0]["sha256"]
    expect(page.locator(".mask-tools [role=status]")).to_contain_text("of the picture is made anew")
    page.get_by_role("button", name="Remove", exact=True).click()
    with service.client() as client:
        drop(page, client.get(job["images"][0]["url"]).content, "made-here.png", "image/png")
    expect(page.locator("#viewer-note")).to_have_text("Verified: made again, every byte is the same.")
    expect(page.locator(".editor")).to_contain_text("the same picture")
    expect(page.locator("#strength-value")).to_have_text("1")


@pytest.mark.slow
def test_a_mask_is_painted_without_a_pointer(open_page: Open, service: Any) -> None:
    page = opened(open_page, service)
    disk = np.pi * 10**2
    assert page.evaluate(BRUSH) == [pytest.approx(disk, rel=0.03), pytest.approx(disk + 32 * 20, rel=0.03), 1, 0]
    choose(page, garment())
    said = page.locator(".mask-tools [role=status]")
    page.get_by_text("Paint a rectangle by numbers").click()
    for side, value in (("left", 7), ("top", 0), ("width", 14), ("height", 14)):
        page.locator(f"#rectangle-{side}").fill(str(value))
    page.get_by_role("button", name="Paint rectangle").press("Enter")
    expect(said).to_have_text("25 % of the picture is made anew, the rest is kept.")
    page.get_by_role("button", name="Invert").press("Enter")
    expect(said).to_have_text("75 % of the picture is made anew, the rest is kept.")
    page.get_by_role("button", name="Undo").press("Enter")
    page.locator("#rectangle-left").fill("14")
    page.get_by_role("button", name="Erase rectangle").press("Enter")
    expect(said).to_have_text("13 % of the picture is made anew, the rest is kept.")
    page.get_by_role("button", name="Clear").press("Enter")
    expect(said).to_have_text("Nothing is painted: the whole picture is made anew.")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator(".editor")).to_have_count(0)
    page.locator("#generate").click()
    finished(page)
    assert jobs_of(service)[0]["image"] is None


# Where pictures lie on their larger canvas: of a model of one size, and of latents in multiples of 16 pixels.
LAYOUTS = """async () => {
  const { layout } = await import("/playground/form/extend.js");
  const none = { left: 0, right: 0, top: 0, bottom: 0 };
  const fixed = { size_multiple: null, max_pixels: null, latent: null };
  const free = { size_multiple: 16, max_pixels: 64 * 64, latent: { downscale: 4 } };
  return [
    layout([28, 28], { ...none, left: 0.5, right: 0.5 }, fixed),
    layout([28, 28], { ...none, top: 1 }, fixed),
    layout([32, 32], { ...none, right: 0.3 }, free),
    layout([32, 32], { left: 0.5, right: 0, top: 0.25, bottom: 0.25 }, free),
    layout([64, 64], { ...none, left: 1 }, free),
  ];
}"""


@pytest.mark.slow
def test_a_picture_is_continued_beyond_its_edges(open_page: Open, service: Any) -> None:
    page = opened(open_page, service)
    assert page.evaluate(LAYOUTS) == [
        {"size": [28, 28], "place": [7, 7, 14, 14]},
        {"size": [28, 28], "place": [7, 14, 14, 14]},
        {"size": [48, 32], "place": [0, 0, 32, 32]},
        {"size": [48, 48], "place": [16, 8, 32, 32]},
        {"size": [64, 64], "place": [32, 16, 32, 32]},
    ]
    choose(page, garment(ink=120))
    page.get_by_text("Extend the picture beyond its edges").click()
    tops = page.locator("[id^=extend-]").evaluate_all("all => all.map((it) => it.getBoundingClientRect().top)")
    assert len(tops) == 4
    assert len(set(tops)) == 1, "in one row, however long their labels are"
    for edge, percent in (("left", 0), ("right", 100), ("top", 50), ("bottom", 50)):
        page.locator(f"#extend-{edge}").fill(str(percent))
    page.get_by_role("button", name="Extend", exact=True).press("Enter")
    expect(page.locator(".editor")).to_contain_text("the extended picture")
    expect(page.locator(".mask-tools [role=status]")).to_have_text(
        "75 % of the picture is made anew, the rest is kept."
    )
    assert violations(page) == []
    page.locator("#strength").fill("1")
    page.locator("#generate").click()
    finished(page)
    after = made(service, jobs_of(service)[0]).astype(int)
    reduced = np.asarray(Image.open(io.BytesIO(garment(ink=120))).resize((14, 14), Image.Resampling.BOX)).astype(int)
    assert np.abs(after[7:21, :14] - reduced)[2:-2, 2:-2].mean() < 12, "the picture is kept at its place"
    assert after[:, 14:].std() > 5, "and what is new is no copy of a plain color"


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), ({"width": 1280, "height": 900}, "light")])
def test_the_editor_is_accessible_and_fits(size: dict[str, int], scheme: str, open_page: Open, service: Any) -> None:
    page = opened(open_page, service, viewport=size, color_scheme=scheme)
    choose(page, encoded(Image.new("RGB", (90, 30), "teal"), "jpeg"), "wide.jpg", "image/jpeg")
    paint(page, (0.2, 0.2), (0.8, 0.8))
    page.get_by_text("Paint a rectangle by numbers").click()
    assert violations(page) == []
    assert overflow(page) <= 0


@pytest.mark.slow
def test_a_dropped_picture_without_a_request_is_the_start(open_page: Open, service: Any) -> None:
    page = opened(open_page, service)
    drop(page, encoded(Image.new("RGB", (90, 60), "white"), "jpeg"), "paper.jpg", "image/jpeg")
    expect(page.locator(".editor")).to_contain_text("paper.jpg")
    page.locator("#strength").fill("0")
    page.locator("#generate").click()
    finished(page)
    assert (made(service, jobs_of(service)[0]) > 250).all(), "strength 0 returns the picture"
    drop(page, garment(), "garment.png", "image/png")
    expect(page.locator(".editor")).to_contain_text("garment.png")
    page.get_by_role("button", name="Start from it").click()
    expect(page.locator(".editor")).to_contain_text("bag, seed")
    drop(page, b"no picture", "broken.png", "image/png")
    expect(page.locator("#form-error")).to_have_text("broken.png: Only PNG, JPEG and WebP pictures can be used.")


@pytest.mark.slow
def test_pictures_are_offered_only_to_models_that_take_them(open_page: Open, service: Any) -> None:
    def without(route: Route) -> None:
        cards = route.fetch().json()
        route.fulfill(json=[card | {"inputs": ["label"]} for card in cards])

    page = open_page("about:blank")
    page.route("**/models", without)
    page.goto(service.url)
    page.get_by_role("radio", name="digits", exact=True).check()
    expect(page.locator("#image-field")).to_be_hidden()
    drop(page, garment(), "garment.png", "image/png")
    expect(page.locator("#form-error")).to_contain_text("The selected model does not start from pictures")
    page.locator("#generate").click()
    finished(page)
    expect(page.get_by_role("button", name="Start from it")).to_have_count(0)


@pytest.mark.slow
def test_many_pictures_are_saved_as_one_grid_and_turned_over_one_by_one(
    open_page: Open, service: Any, tmp_path: Path
) -> None:
    page = opened(open_page, service)
    page.locator("#n").fill("4")
    page.locator("#seed").fill("70")
    page.locator("#generate").click()
    finished(page)
    page.locator("section.viewer").get_by_text("Download", exact=True).click()
    with page.expect_download() as saving:
        page.get_by_role("button", name="One grid").click()
    assert saving.value.suggested_filename == "bag-70-to-73.png"
    with Image.open(saving.value.path()) as grid, service.client() as client:
        assert grid.size == (228, 228), "two by two pictures, four times as large, with a gap of 4 pixels"
        last = Image.open(io.BytesIO(client.get(jobs_of(service)[0]["images"][3]["url"]).content))
        assert np.array_equal(np.asarray(grid.convert("L"))[116::4, 116::4], np.asarray(last))
    page.get_by_role("button", name="Enlarge").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Bag, seed 70 (1 of 4)", use_inner_text=True, ignore_case=True)
    page.keyboard.press("ArrowLeft")
    expect(dialog).to_contain_text("seed 73 (4 of 4)")
    dialog.get_by_role("button", name="Next").click()
    expect(dialog).to_contain_text("seed 70 (1 of 4)")
    assert violations(page) == []
    dialog.get_by_role("button", name="Alone").click()
    expect(page.locator("#viewer-facts")).to_contain_text("seed 70")
