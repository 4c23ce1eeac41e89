"""Animations and contact sheets of jobs with known frames: what they show, where, and for how long."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pytest
from PIL import Image, ImageSequence
from starlette.testclient import TestClient

from denoised.app.job_access import rendering_slots
from denoised.app.routes import animation
from denoised.app.services import Services
from denoised.jobs.record import Image as Made
from denoised.jobs.redis.deadline import REDIS_DEADLINE
from denoised.jobs.store.update import JobUpdate

FORMATS = ["webp", "gif", "apng"]
SHADES = [200, 150, 100]  # of the finished pictures


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (28, 28), shade).save(out, "png")
    return out.getvalue()


def frames(step: int, shades: list[int], kind: str = "x0") -> list[dict[str, Any]]:
    """One frame event per image."""
    return [
        {
            "type": "frame",
            "image": index,
            "step": step,
            "steps": 20,
            "kind": kind,
            "media_type": "image/png",
            "data": base64.b64encode(png(shade)).decode(),
        }
        for index, shade in enumerate(shades)
    ]


def done(fake_worker: Any, *steps: list[dict[str, Any]], finished: bool = True) -> str:
    """A job with three images that kept these frames."""
    job_id: str = fake_worker.create(n=3, preview_every=int(bool(steps)))
    attempt = fake_worker.start(job_id)
    for number, events in enumerate(steps, start=1):
        fake_worker.progress(job_id, attempt, number, *events)
    if finished:
        data = [png(shade) for shade in SHADES]
        images = [Made(k, 7 + k, 28, 28, "png", hashlib.sha256(data[k]).hexdigest()) for k in range(3)]
        write = JobUpdate(job_id, attempt, 10**9, images=dict(enumerate(data)), image_count=3)
        write.fields["images"] = json.dumps([asdict(image) for image in images])
        write.end("succeeded")
        assert fake_worker.store.write(write)
    return job_id


def shown(answer: Any) -> tuple[list[Image.Image], list[int]]:
    """The pictures of an animation in gray, and how long each is shown, in milliseconds."""
    assert answer.status_code == 200, answer.text
    pictures, times = [], []
    with Image.open(io.BytesIO(answer.content)) as opened:
        for picture in ImageSequence.Iterator(opened):
            picture.load()
            pictures.append(picture.convert("L"))
            times.append(int(picture.info.get("duration", 0)))
    return pictures, times


def shades(sheet: Image.Image, gap: int) -> list[int]:
    """The gray values in the middle of the four cells of a 2 × 2 grid. gap: between cells, in pixels of the model."""
    factor = sheet.width // (2 * 28 + 3 * gap)
    centers = [factor * (gap + 14 + k * (28 + gap)) for k in range(2)]
    return [int(sheet.getpixel((x, y))) for y in centers for x in centers]  # type: ignore[call-overload]


@pytest.mark.parametrize("format", FORMATS)
def test_a_contact_sheet_shows_all_images_and_ends_with_the_finished_pictures(
    format: str, api: TestClient, fake_worker: Any
) -> None:
    job_id = done(fake_worker, frames(5, [10, 20, 30]), frames(10, [40, 50, 60]))
    answer = api.get(f"/jobs/{job_id}/animation", params={"format": format, "sheet": 1})
    assert answer.headers["content-type"] == f"image/{format}"
    sheets, times = shown(answer)
    assert [sheet.size for sheet in sheets] == [(248, 248)] * 3  # two columns of 28, three gaps of 2, fourfold
    assert [shades(sheet, 2) for sheet in sheets] == [[10, 20, 30, 255], [40, 50, 60, 255], [*SHADES, 255]]
    assert [int(sheets[0].getpixel((x, 124))) for x in (0, 124, 247)] == [255] * 3  # type: ignore[call-overload]
    assert times == [80, 80, 1500]


@pytest.mark.parametrize("format", FORMATS)
def test_an_animation_shows_only_the_stored_frames(format: str, api: TestClient, fake_worker: Any) -> None:
    job_id = done(fake_worker, frames(5, [10, 20, 30]), frames(10, [40, 50, 60]))
    film, times = shown(api.get(f"/jobs/{job_id}/animation", params={"format": format}))
    assert [picture.size for picture in film] == [(224, 224)] * 2
    assert [shades(picture, 0) for picture in film] == [[10, 20, 30, 0], [40, 50, 60, 0]]
    assert times == [80, 1500]


@pytest.mark.parametrize("format", FORMATS)
def test_the_sheet_of_a_job_without_frames_shows_its_pictures(format: str, api: TestClient, fake_worker: Any) -> None:
    job_id = done(fake_worker)
    assert api.get(f"/jobs/{job_id}/animation", params={"format": format}).status_code == 409
    sheets, _ = shown(api.get(f"/jobs/{job_id}/animation", params={"format": format, "sheet": 1}))
    assert [shades(sheet, 2) for sheet in sheets] == [[*SHADES, 255]]


def bomb() -> bytes:
    """A small PNG of 1.6 gigapixels."""
    data = bytearray(png(0))
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def damaged_frames(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Variants of a frame that no picture can be made of."""
    texts = ["", "no base64!", base64.b64encode(png(5)[:40]).decode(), base64.b64encode(bomb()).decode()]
    fields: list[dict[str, Any]] = [{"data": text} for text in texts]
    fields += [{"data": 7}, {"data": None}, {"step": "5"}, {"image": None}, {"image": 99}, {"image": -1}, {"kind": []}]
    lacking = [{name: value for name, value in whole.items() if name != lost} for lost in ("data", "step", "image")]
    return [{**whole, **each} for each in fields] + lacking


def test_a_damaged_frame_or_picture_leaves_its_own_place_empty(api: TestClient, fake_worker: Any) -> None:
    first, second, third = frames(10, [40, 50, 60])
    for wrong in damaged_frames(second):
        job_id = done(fake_worker, frames(5, [10, 20, 30]), [first, wrong, third])
        film, _ = shown(api.get(f"/jobs/{job_id}/animation", params={"format": "gif"}))
        assert shades(film[0], 0) == [10, 20, 30, 0], wrong
        assert shades(film[-1], 0) == [40, 0, 60, 0], wrong
    job_id = done(fake_worker)
    for data in (b"no PNG", png(5)[:50], bomb()):
        fake_worker.client.set(f"denoised:job:{job_id}:image:0", data)
        (sheet,), _ = shown(api.get(f"/jobs/{job_id}/animation", params={"sheet": 1}))
        assert shades(sheet, 2)[1:3] == SHADES[1:]
    for index in (1, 2):
        fake_worker.client.set(f"denoised:job:{job_id}:image:{index}", b"no PNG")
    assert api.get(f"/jobs/{job_id}/animation", params={"sheet": 1}).status_code == 409


def test_a_last_frame_equal_to_the_picture_is_not_shown_twice(api: TestClient, fake_worker: Any) -> None:
    job_id = done(fake_worker, frames(10, [1, 2, 3]), frames(20, SHADES))
    sheets, _ = shown(api.get(f"/jobs/{job_id}/animation", params={"format": "gif", "sheet": 1}))
    assert [shades(sheet, 2) for sheet in sheets] == [[1, 2, 3, 255], [*SHADES, 255]]


def test_the_sheet_of_an_unfinished_job_shows_its_frames(api: TestClient, fake_worker: Any) -> None:
    job_id = done(fake_worker, frames(5, [10, 20, 30]), finished=False)
    sheets, _ = shown(api.get(f"/jobs/{job_id}/animation", params={"sheet": "true"}))
    assert [shades(sheet, 2) for sheet in sheets] == [[10, 20, 30, 255]]
    bare = done(fake_worker, finished=False)
    assert api.get(f"/jobs/{bare}/animation", params={"sheet": 1}).status_code == 409


def test_a_kind_that_was_not_kept_is_a_409(api: TestClient, fake_worker: Any) -> None:
    job_id = done(fake_worker, frames(5, [10, 20, 30]))
    for sheet in (0, 1):
        answer = api.get(f"/jobs/{job_id}/animation", params={"kind": "xt", "sheet": sheet})
        assert answer.status_code == 409
        assert "kept no xt frames" in answer.json()["detail"]
    assert api.get(f"/jobs/{job_id}/animation", params={"sheet": "yes please"}).status_code == 422


def test_a_very_large_animation_shows_every_kth_frame_and_the_last(
    api: TestClient, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = done(fake_worker, *(frames(step, [step] * 3) for step in range(1, 11)), finished=False)
    for pixels, steps in ((10, [*range(1, 11)]), (5, [2, 4, 6, 8, 10]), (4, [1, 4, 7, 10]), (1, [10])):
        monkeypatch.setattr("denoised.app.job_access.film.MAX_PIXELS", pixels * 224 * 224)
        film, _ = shown(api.get(f"/jobs/{job_id}/animation", params={"format": "apng"}))
        assert [picture.convert("L").getpixel((0, 0)) for picture in film] == steps


def test_six_animations_at_once_are_made_two_at_a_time(
    api: TestClient, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They answered 503 "Redis does not answer"."""
    job_id = done(fake_worker, frames(5, [10, 20, 30]))
    running, most = [], []
    original = animation.render

    def slow(*args: Any, **options: Any) -> bytes:
        running.append(1)
        most.append(len(running))
        time.sleep(0.2)
        running.pop()
        return original(*args, **options)

    monkeypatch.setattr(animation, "render", slow)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: api.get(f"/jobs/{job_id}/animation"), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert max(most) == rendering_slots.SLOTS


def test_an_animation_that_finds_no_slot_in_time_says_so(
    api: TestClient, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = done(fake_worker, frames(5, [10, 20, 30]))
    monkeypatch.setattr(rendering_slots, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(animation, "render", lambda *args, **options: time.sleep(1.0) or b"")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: api.get(f"/jobs/{job_id}/animation"), range(6)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 4
    for answer in refused:
        assert "animations are being made" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "5"


def test_reading_the_frames_may_take_longer_than_other_requests_to_redis(
    api: TestClient, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = done(fake_worker, *(frames(step, [step] * 3) for step in range(1, 6)))
    log = api.app.state.services.frames  # type: ignore[attr-defined]
    page = log.page

    def slow(job_id: str, after: int, size: int) -> Any:
        deadline = REDIS_DEADLINE.get()
        if deadline is not None:
            deadline.left -= 1.0
        return page(job_id, after, 1)

    monkeypatch.setattr(log, "page", slow)
    assert api.get(f"/jobs/{job_id}/animation").status_code == 200


def test_a_job_without_frames_is_refused_without_redis_or_a_slot(
    api: TestClient, services: Services, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a slow Redis, three such requests took five seconds: each waited for a slot and read all events."""
    monkeypatch.setattr(services.renderings, "run", None)
    job = done(fake_worker)
    assert api.get(f"/jobs/{job}/animation").status_code == 409
    assert api.get(f"/jobs/{job}/animation?kind=xt&sheet=1").status_code == 409
