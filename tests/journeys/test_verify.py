"""`POST /verify` and `denoised verify` on the bundled models."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from denoised import Client
from denoised.app.http.schemas import Verification
from denoised.client import exchange
from tests import fork_server
from tests.journeys.conftest import GARMENTS

REQUEST = {"label": "sneaker", "seed": 7, "steps": 5, "n": 2}
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def picture(service: Any) -> bytes:
    """The second of two that were made at once: seed 8."""
    with service.client() as client:
        job = client.post("/generate", json=REQUEST, headers={"Prefer": "wait=60"}).json()
        return bytes(client.get(job["images"][1]["url"]).content)


def saved(image: Image.Image, **changed: Any) -> bytes:
    """The image written by another program than ours, with the text it carried."""
    info, out = PngInfo(), io.BytesIO()
    parameters = json.loads(image.text["parameters"])  # type: ignore[attr-defined]
    info.add_itxt("parameters", json.dumps(parameters | changed, ensure_ascii=False))
    image.save(out, "png", pnginfo=info, compress_level=0)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.load()
    return image


def verdict(service: Any, data: bytes) -> dict[str, Any]:
    with service.client() as client:
        answer = client.post("/verify", content=data, headers=PNG)
    assert answer.status_code == 200, answer.text
    return Verification.model_validate(answer.json()).model_dump()


def flipped(data: bytes) -> bytes:
    """One bit of one pixel changed, written as the worker writes."""
    image = opened(data)
    image.putpixel((14, 14), int(np.asarray(image)[14, 14]) ^ 1)
    out, info = io.BytesIO(), PngInfo()
    info.add_itxt("parameters", image.text["parameters"])  # type: ignore[attr-defined]
    image.save(out, "png", pnginfo=info)
    return out.getvalue()


def denoised(*arguments: object, service: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "denoised", "verify", "--url", service.url, *map(str, arguments)]
    return fork_server.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_picture_is_made_again_byte_for_byte(service: Any, picture: bytes) -> None:
    found = verdict(service, picture)
    assert (found["match"], found["pixels_match"], found["reason"]) == (True, True, None)
    assert (found["request"]["model"], found["request"]["label"]) == ("fashion-mnist", "sneaker")
    assert (found["request"]["seed"], found["request"].get("n", 1)) == (8, 1)
    assert found["numerics"]["picture"] == found["numerics"]["here"]
    with service.client() as client:
        job = client.get(f"/jobs/{found['job']}").json()
        assert job["images"][0]["sha256"] == found["sha256"] == found["expected_sha256"]
        again = client.post("/generate", json=found["request"], headers={"Accept": "image/png"})
        assert again.content == picture


def test_one_flipped_bit_of_one_pixel_is_detected(service: Any, picture: bytes) -> None:
    found = verdict(service, flipped(picture))
    assert (found["match"], found["pixels_match"]) == (False, False)
    assert "changed" in found["reason"]


def test_another_seed_in_the_file_is_detected(service: Any, picture: bytes) -> None:
    found = verdict(service, saved(opened(picture), seed=9))
    assert (found["match"], found["pixels_match"], found["request"]["seed"]) == (False, False, 9)


def test_a_resaved_file_is_distinguished_from_a_changed_picture(service: Any, picture: bytes) -> None:
    found = verdict(service, saved(opened(picture)))
    assert (found["match"], found["pixels_match"]) == (False, True)
    assert found["reason"] == "same pixels, different file: it was re-saved or edited"


def test_a_picture_of_the_first_format_is_verified(service: Any) -> None:
    """Made by the last version that wrote every field into a picture. Elsewhere the pixels may differ in a last bit."""
    old = (Path(__file__).parent / "pictures/format_1.png").read_bytes()
    found = verdict(service, old)
    assert found["request"] == {
        "model": "fashion-mnist",
        "label": "sneaker",
        "n": 1,
        "seed": 7,
        "sampler": "dpmpp_2m",
        "steps": 4,
        "eta": 0.0,
        "guidance_scale": 1.5,
        "guidance_rescale": 0.0,
        "spacing": None,
        "karras": None,
        "format": "png",
    }
    with service.client() as client:
        now = client.get(f"/jobs/{found['job']}/images/0").content
    difference = np.asarray(opened(old)).astype(int) - np.asarray(opened(now))
    assert abs(difference).max() <= 1
    assert found["match"] is False
    if found["numerics"]["here"].startswith(f"{found['numerics']['picture']}/model-"):
        assert found["pixels_match"] is True
        assert found["reason"] == "same pixels, different file: another version of denoised wrote it"


def test_other_numerics_are_named_as_the_cause(service: Any, picture: bytes) -> None:
    found = verdict(service, saved(opened(picture), numerics="eager/torch-0.1/abacus"))
    assert found["match"] is False
    assert "eager/torch-0.1/abacus" in found["reason"]
    assert found["numerics"]["here"] in found["reason"]


def test_a_file_that_cannot_be_verified_is_refused_with_the_cause(service: Any, picture: bytes) -> None:
    with service.client() as client:
        unknown = client.post("/verify", content=saved(opened(picture), model="shoes"), headers=PNG)
        assert (unknown.status_code, unknown.json()["errors"][0]["field"]) == (422, "model")
        assert '"shoes" is not served' in unknown.json()["detail"]
        for kind in ("webp", "jpeg"):
            made = client.post("/generate", json={**GARMENTS, "steps": 1}, headers={"Accept": f"image/{kind}"}).content
            refused = client.post("/verify", content=made, headers=PNG)
            assert (refused.status_code, "not a PNG" in refused.json()["detail"]) == (415, True)
            refused = client.post("/verify", content=made, headers={"Content-Type": f"image/{kind}"})
            assert (refused.status_code, "image/png" in refused.json()["detail"]) == (415, True)


def test_the_job_is_canceled_if_the_client_disconnects(service: Any, picture: bytes) -> None:
    long = saved(opened(picture), steps=1000, seed=99)
    with service.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/verify", content=long, headers=PNG, timeout=1.0)
        job = next(job for job in client.get("/jobs").json()["jobs"] if job["seed"] == 99)
        with client.stream("GET", job["links"]["events"], headers={"Accept": "text/event-stream"}) as stream:
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        assert events[-1]["type"] == "canceled"


def test_the_client_waits_for_one_job_across_several_calls(
    service: Any, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "VERIFY_WAIT", 0)
    with Client(service.url) as client:
        found = client.verify(saved(opened(picture), steps=20, seed=4242))
    assert (found.match, found.request["seed"]) == (False, 4242)
    with service.client() as http:
        jobs = http.get("/jobs?limit=10").json()["jobs"]
        assert [job["id"] for job in jobs if job["seed"] == 4242] == [found.job]


def test_the_command_prints_one_line_per_file(service: Any, picture: bytes, tmp_path: Path) -> None:
    good, bad, broken = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "broken.png"
    good.write_bytes(picture)
    bad.write_bytes(flipped(picture))
    broken.write_bytes(picture[:100])
    done = denoised(good, service=service)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{good}: regenerated, the bytes are equal (fashion-mnist, sneaker, seed 8)\n"
    done = denoised(bad, good, service=service)
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{bad}: regenerated, the bytes differ: the ")
    assert second.startswith(f"{good}: regenerated, the bytes are equal ")
    done = denoised(broken, tmp_path / "none.png", good, service=service)
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 1)
    first, second = done.stderr.splitlines()
    assert re.search("broken.png: .*truncated", first)
    assert re.search("none.png: cannot be read", second)


def test_the_command_prints_json(service: Any, picture: bytes, tmp_path: Path) -> None:
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    good.write_bytes(picture)
    broken.write_bytes(b"\x1b[2J")
    done = denoised("--json", good, broken, service=service)
    assert (done.returncode, done.stderr) == (2, "")
    verified, refused = [json.loads(line) for line in done.stdout.splitlines()]
    assert verified.pop("file") == str(good)
    assert Verification.model_validate(verified).match is True
    assert (refused["file"], "not a PNG" in refused["error"]) == (str(broken), True)


def test_the_command_prints_no_control_characters(service: Any, picture: bytes, tmp_path: Path) -> None:
    file = tmp_path / "evil\x1b[2J.png"
    file.write_bytes(saved(opened(picture), **{"\x1b]0;owned\x07": 1}))
    done = denoised(file, service=service)
    assert done.returncode == 2
    assert "is not a field of this request" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_server_the_command_suggests_starting_one(picture: bytes, tmp_path: Path) -> None:
    file = tmp_path / "good.png"
    file.write_bytes(picture)
    command = [sys.executable, "-m", "denoised", "verify", "--url", "http://127.0.0.1:9", str(file)]
    done = fork_server.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "denoised serve" in done.stderr
