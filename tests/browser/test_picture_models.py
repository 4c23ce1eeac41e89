"""The page with models that see a picture: instruct-pix2pix (8 input channels) and inpainting (9)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionInstructPix2PixPipeline
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.test_playground import finished, jobs_of
from tests.browser.test_start_pictures import choose, encoded, paint
from tests.text_pipelines import PROMPT, SIZE, build_pipeline, save_pipeline

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

Open = Callable[..., Page]
EDIT, INPAINT = "tiny-edit", "tiny-inpaint"
NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def build(kind: type, channels: int) -> Callable[..., Any]:
    """A pipeline whose U-Net has so many input channels."""

    def built(vocabulary: Path) -> Any:
        parts = build_pipeline(vocabulary, unet={"in_channels": channels}).components
        kept = {name: part for name, part in parts.items() if part is not None}
        return kind(**kept, safety_checker=None, feature_extractor=None, requires_safety_checker=False)

    return built


@pytest.fixture(scope="module")
def models(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pipelines")
    save_pipeline(folder / EDIT, build=build(StableDiffusionInstructPix2PixPipeline, 8))
    save_pipeline(folder / INPAINT, build=build(StableDiffusionInpaintPipeline, 9))
    options = ("--model", str(folder / EDIT), "--model", str(folder / INPAINT))
    return start_service(tmp_path_factory.mktemp("picture-models") / "data", *options)


def opened(open_page: Open, models: Any, name: str) -> Page:
    page = open_page(models.url, may_complain=True)  # Chromium logs each 422
    page.get_by_role("radio", name=name, exact=True).check()
    page.locator("#prompt").fill(PROMPT)
    page.locator("#more > summary").click()
    page.locator("#steps").fill("3")
    return page


def picture(models: Any, job: dict[str, Any]) -> np.ndarray:
    with models.client() as client:
        return np.asarray(Image.open(io.BytesIO(client.get(job["images"][0]["url"]).content)))


def test_a_model_that_edits_a_picture_needs_one_and_takes_no_mask(open_page: Open, models: Any) -> None:
    page = opened(open_page, models, EDIT)
    page.locator("#generate").click()
    expect(page.locator("#image-error")).to_contain_text("tiny-edit edits a picture")
    choose(page, encoded(NOISE, "png"), "noise.png")
    expect(page.locator(".mask-tools")).to_be_hidden()
    expect(page.locator("#strength")).to_be_hidden()
    page.locator("#guidance_scale").fill("4")
    page.locator("#image_guidance_scale").fill("2")
    page.locator("#generate").click()
    finished(page)
    job = jobs_of(models)[0]
    assert (job["model"], job["image_guidance_scale"], job["guidance_scale"]) == (EDIT, 2, 4)
    expect(page.locator("#viewer-facts")).to_contain_text("from a picture, picture guidance 2")
    assert job["image"].startswith("sha256:")
    first = picture(models, job)
    page.locator("#image_guidance_scale").fill("1")
    page.locator("#seed").fill(str(job["seed"]))
    page.locator("#generate").click()
    expect(page.locator("#cards > li")).to_have_count(2)
    finished(page)
    assert np.any(first != picture(models, jobs_of(models)[0]))


def test_a_model_that_fills_a_part_needs_a_mask_and_continues_a_picture(open_page: Open, models: Any) -> None:
    page = opened(open_page, models, INPAINT)
    choose(page, encoded(NOISE, "png"), "noise.png")
    page.locator("#generate").click()
    expect(page.locator("#mask-error")).to_contain_text("fills a part")
    paint(page, (0.5, 0.2), (0.5, 0.8))
    page.locator("#strength").fill("1")
    page.locator("#generate").click()
    finished(page)
    job = jobs_of(models)[0]
    assert (job["model"], job["status"], job["strength"]) == (INPAINT, "succeeded", 1)
    assert job["mask"].startswith("sha256:")
    page.get_by_text("Extend the picture beyond its edges").click()
    for edge, percent in (("left", 0), ("right", 50), ("top", 0), ("bottom", 0)):
        page.locator(f"#extend-{edge}").fill(str(percent))
    page.get_by_role("button", name="Extend", exact=True).click()
    expect(page.locator(".mask-tools [role=status]")).to_contain_text("33 % of the picture is made anew")
    expect(page.locator("#width")).to_have_value("24")
    page.locator("#generate").click()
    expect(page.locator("#cards > li")).to_have_count(2)
    finished(page)
    wide = jobs_of(models)[0]
    assert (wide["status"], wide["images"][0]["width"], wide["images"][0]["height"]) == ("succeeded", 24, 16)
