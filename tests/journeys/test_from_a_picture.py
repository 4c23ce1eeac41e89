"""Jobs that start from a picture, and the commands for many pictures, against the running service."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from denoised import Client
from tests import fork_server
from tests.journeys.conftest import wait_for

DIGITS: dict[str, Any] = {"model": "digits", "steps": 6, "sampler": "euler"}
SIDE = 8


def pixels(data: bytes) -> list[int]:
    with Image.open(io.BytesIO(data)) as image:
        return list(image.convert("L").tobytes())


def run(service: Any, *arguments: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "denoised", *map(str, arguments), "--url", service.url]
    outcome = fork_server.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == code, outcome.stderr
    return outcome


@pytest.fixture(scope="module")
def client(service: Any) -> Any:
    with Client(service.url) as client:
        yield client


def made(client: Client, **fields: Any) -> bytes:
    job = client.wait(client.submit(**{**DIGITS, **fields}).id)
    assert job.status == "succeeded", job.error
    return client.image(job.images[0])


@pytest.fixture(scope="module")
def picture(client: Client) -> bytes:
    return made(client, label="3", seed=5)


@pytest.fixture(scope="module")
def mask() -> bytes:
    image, out = Image.new("L", (SIDE, SIDE), 0), io.BytesIO()
    image.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    image.save(out, "png")
    return out.getvalue()


def test_the_ends_of_strength_are_the_picture_and_plain_generation(client: Client, picture: bytes) -> None:
    plain = made(client, label="7", seed=9)
    assert pixels(made(client, label="7", seed=9, image=picture, strength=1.0)) == pixels(plain)
    nothing = client.wait(client.submit(**DIGITS, label="7", image=picture, strength=0.0).id)
    assert (nothing.status, nothing.step, nothing.run_steps, nothing.timing.evaluations) == ("succeeded", 0, 0, 0)
    assert pixels(client.image(nothing.images[0])) == pixels(picture)
    between = pixels(made(client, label="7", seed=9, image=picture, strength=0.5))
    assert between not in (pixels(picture), pixels(plain))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "euler_a", "unipc"])
def test_what_the_mask_keeps_is_exact(client: Client, picture: bytes, mask: bytes, sampler: str) -> None:
    found = pixels(made(client, label="7", image=picture, mask=mask, strength=0.9, sampler=sampler))
    before = pixels(picture)
    kept = [row * SIDE + column for row in range(SIDE) for column in range(SIDE // 2)]
    assert [found[k] for k in kept] == [before[k] for k in kept]
    assert found != before


def test_the_same_request_alone_and_among_others_has_the_same_bytes(client: Client, picture: bytes) -> None:
    alone = made(client, label="7", seed=21, image=picture, strength=0.7)
    jobs = [client.submit(**DIGITS, label=str(k % 10), seed=20 + k, image=picture, strength=0.7) for k in range(8)]
    jobs.append(client.submit(**DIGITS, label="7", seed=21, image=picture, strength=0.7))
    assert client.image(client.wait(jobs[-1].id).images[0]) == alone


def test_a_png_names_its_picture_and_is_verified_with_it(
    client: Client, picture: bytes, mask: bytes, service: Any, tmp_path: Path
) -> None:
    data = made(client, label="7", seed=3, image=picture, mask=mask, strength=0.6)
    with Image.open(io.BytesIO(data)) as image:
        parameters = json.loads(image.text["parameters"])  # type: ignore[attr-defined]
    assert parameters["image"].startswith("sha256:")
    assert (parameters["strength"], parameters["mask"].startswith("sha256:")) == (0.6, True)
    assert client.verify(data).match, "the pictures are still stored"
    assert client.verify(data, image=picture, mask=mask).match
    names = {"made.png": data, "photo.png": picture, "mask.png": mask}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in names]
    outcome = run(service, "verify", files[0], "--image", files[1], "--mask", files[2])
    assert "the bytes are equal" in outcome.stdout
    refused = run(service, "verify", files[0], "--image", files[2], code=2)
    assert "but the picture was made from sha256:" in refused.stderr


def test_the_command_line_sends_files_and_names(
    client: Client, picture: bytes, mask: bytes, service: Any, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(picture)
    (tmp_path / "mask.png").write_bytes(mask)
    options = [
        "--model",
        "digits",
        "--steps",
        6,
        "--sampler",
        "euler",
        "--seed",
        3,
        "--out",
        tmp_path / "out",
        "--json",
    ]
    given = ["--image", tmp_path / "photo.png", "--strength", 0.6, "--mask", tmp_path / "mask.png"]
    job = json.loads(run(service, "generate", "7", *given, *options).stdout)
    assert Path(job["images"][0]["file"]).read_bytes() == made(
        client, label="7", seed=3, image=picture, mask=mask, strength=0.6
    )
    again = json.loads(run(service, "generate", "7", "--image", f"job:{job['id']}/images/0", *options).stdout)
    assert again["image"] == f"sha256:{job['images'][0]['sha256']}"
    missing = run(service, "generate", "7", "--image", tmp_path / "none.png", *options, code=2)
    assert "none.png' cannot be read" in missing.stderr


def test_pictures_are_fetched_and_nothing_is_overwritten(client: Client, service: Any, tmp_path: Path) -> None:
    job = client.wait(client.submit(**DIGITS, label="7", seed=1, n=2).id)
    first = run(service, "fetch", job.id, "--out", tmp_path).stdout.split()
    assert [Path(name).name for name in first] == ["7-1.png", "7-2.png"]
    assert run(service, "fetch", job.id, "--out", tmp_path).stdout.split() == first, "equal files are kept"
    Path(first[0]).write_bytes(b"mine")
    assert Path(run(service, "fetch", job.id, "--out", tmp_path).stdout.split()[0]).name == "7-1-2.png"
    assert Path(first[0]).read_bytes() == b"mine"
    running = client.submit(**{**DIGITS, "sampler": "langevin", "steps": 1000}, n=16)  # 80,000 evaluations
    assert f"job {running.id} is " in run(service, "fetch", running.id, "--out", tmp_path, code=1).stderr
    client.cancel(running.id)
    assert "not found" in run(service, "fetch", "nothing", "--out", tmp_path, code=1).stderr


def test_more_images_than_one_job_may_hold_are_several_jobs(client: Client, service: Any, tmp_path: Path) -> None:
    options = ["--model", "digits", "--steps", 2, "--sampler", "euler", "--seed", 100]
    names = run(service, "generate", "7", "-n", 21, *options, "--out", tmp_path).stdout.split()
    assert [Path(name).name for name in names] == [f"7-{seed}.png" for seed in range(100, 121)]
    last = made(client, label="7", seed=120, steps=2)
    assert Path(names[-1]).read_bytes() == last


def test_a_file_of_prompts_continues_where_it_was_interrupted(service: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("1\n\n7\n7\n" + "3\n" * 5)
    out = tmp_path / "out"
    options = ["--prompts", prompts, "--model", "digits", "--steps", 200, "--sampler", "euler", "-n", 4, "--out", out]
    command = [sys.executable, "-m", "denoised", "generate", *map(str, options), "--url", service.url]
    process = fork_server.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    record = out / "denoised-jobs.jsonl"
    wait_for(lambda: record.exists() and '"files"' in record.read_text(), "the first saved job")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert len(before) < 32
    outcome = run(service, "generate", *options)
    assert "of 8 jobs are in" in outcome.stderr
    assert "8 of 8: 3" in outcome.stderr
    files = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert len(files) == 32
    assert before.items() <= files.items()
    assert run(service, "generate", *options).stdout == ""
    assert {path.name for path in out.glob("*.png")} == set(files)
    refused = run(service, "generate", "7", *options, code=2)
    assert "give either --prompts or TEXT, not both" in refused.stderr


def test_a_variation_is_near_the_picture_that_it_varies(client: Client) -> None:
    job = client.wait(client.submit(**DIGITS, label="3", seed=5).id)
    original = pixels(client.image(job.images[0]))
    name = f"job:{job.id}/images/0"
    same = client.wait(client.submit(variation=name, mix=1.0).id)
    assert pixels(client.image(same.images[0])) == original
    varied = client.wait(client.submit(variation=name, n=4, seed=77).id)
    others = client.wait(client.submit(**DIGITS, label="3", seed=77, n=4).id)

    def distance(images: Any) -> float:
        found = [pixels(client.image(image)) for image in images]
        return sum(abs(a - b) for each in found for a, b in zip(each, original, strict=True))

    assert distance(varied.images) < distance(others.images)
