"""The page with a model that edits a picture: instruct-pix2pix, whose U-Net has 8 input channels."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.test_playground import finished, jobs_of
from tests.browser.test_start_pictures import choose, encoded
from tests.text_pipelines import PROMPT, SIZE, build_pipeline, save_pipeline

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]

Open = Callable[..., Page]
EDIT = "tiny-edit"
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
    options = ("--model", str(folder / EDIT))
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
    assert job["image"].startswith("sha256:")
    first = picture(models, job)
    page.locator("#image_guidance_scale").fill("1")
    page.locator("#seed").fill(str(job["seed"]))
    page.locator("#generate").click()
    expect(page.locator("#cards > li")).to_have_count(2)
    finished(page)
    assert np.any(first != picture(models, jobs_of(models)[0]))
