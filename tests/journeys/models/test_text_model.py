"""`denoised serve --model FOLDER` with a Stable Diffusion folder: a prompt over HTTP becomes diffusers' own picture."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from PIL import Image

from tests import fork_server
from tests.text_pipelines import (
    NEGATIVE_PROMPT,
    PROMPT,
    SCHEDULER,
    build_xl_pipeline,
    picture_of,
    save_pipeline,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 8
LEVELS = 2  # of 255, how far a pixel may be from diffusers'
MODEL, XL_MODEL = "tiny-sd", "tiny-xl"
SCHEDULERS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}, {}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "leading"}, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, {"karras": True}),
    "plms": (PNDMScheduler, {}, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines") / MODEL


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionPipeline:
    return save_pipeline(folder)


@pytest.fixture(scope="module")
def xl_pipeline(folder: Path) -> Any:
    return save_pipeline(folder.with_name(XL_MODEL), build=build_xl_pipeline)


@pytest.fixture(scope="module")
def service(
    pipeline: Any,
    xl_pipeline: Any,
    folder: Path,
    start_service: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    options = ["--model", str(folder), "--model", str(folder.with_name(XL_MODEL))]
    return start_service(tmp_path_factory.mktemp("text") / "data", *options)


def generate(client: httpx.Client, **fields: Any) -> bytes:
    body = {"model": MODEL, "prompt": PROMPT, "seed": 5, "steps": STEPS, **fields}
    answer = client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.content


def finished(client: httpx.Client, job: str) -> dict[str, Any]:
    while True:
        record: dict[str, Any] = client.get(f"/jobs/{job}").json()
        if record["status"] not in ("queued", "running"):
            return record
        time.sleep(0.05)


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


@pytest.mark.parametrize(
    ("sampler", "guidance_scale"),
    [
        pytest.param(sampler, scale, marks=() if scale > 1 or sampler == "ddim" else pytest.mark.slow)
        for sampler in SCHEDULERS
        for scale in (1.0, 7.5)
    ],
)
def test_a_picture_is_that_of_diffusers(
    sampler: str, guidance_scale: float, service: Any, pipeline: StableDiffusionPipeline
) -> None:
    kind, settings, options = SCHEDULERS[sampler]
    pipeline.scheduler = kind.from_config({**SCHEDULER, **settings})
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": guidance_scale}
    expected = picture_of(pipeline, 5, num_inference_steps=STEPS, **text)
    with service.client() as client:
        found = generate(client, sampler=sampler, **text, **options)
    assert np.abs(pixels(found) - expected.astype(int)).max() <= LEVELS


@pytest.mark.parametrize("fields", [{"guidance_scale": 7.5}, {"guidance_scale": 1, "width": 24, "clip_skip": 1}])
def test_a_picture_of_stable_diffusion_xl_is_that_of_diffusers(
    fields: dict[str, Any], service: Any, xl_pipeline: Any
) -> None:
    expected = picture_of(xl_pipeline, 5, prompt=PROMPT, num_inference_steps=STEPS, **{"height": 16, **fields})
    with service.client() as client:
        found = generate(client, model=XL_MODEL, **fields)
    assert np.abs(pixels(found) - expected.astype(int)).max() <= LEVELS


def test_the_model_is_listed_with_its_inputs(service: Any) -> None:
    with service.client() as client:
        (card,) = [model for model in client.get("/models").json() if model["name"] == MODEL]
    assert card["inputs"] == [
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "clip_skip",
        "emphasis",
        "image",
        "strength",
        "mask",
    ]
    assert (card["size_multiple"], card["max_pixels"]) == (4, 1024)
    assert card["latent"] == {"channels": 4, "downscale": 2}
    own = dict.fromkeys(("guidance_interval", "spacing", "sigma_min", "sigma_max", "sigmas"))
    assert card["default"] == {"sampler": "plms", "steps": 50, "guidance_scale": 7.5, "guidance_rescale": 0.0, **own}


def test_an_image_has_the_same_bytes_alone_and_among_others(service: Any) -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT},
        {"prompt": "a fox", "sampler": "ddim", "width": 24, "n": 3},
        {"prompt": ", ".join([PROMPT] * 20), "sampler": "euler_a"},
        {"prompt": "the dog", "guidance_scale": 1, "height": 32},
        {"prompt": "a (fox:1.4)", "emphasis": True, "clip_skip": 1},
        {"model": XL_MODEL, "prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT},
        {"model": XL_MODEL, "prompt": "a fox", "sampler": "ddim", "width": 24, "n": 2},
        {"model": XL_MODEL, "prompt": "the dog", "guidance_scale": 1},
    ]
    with service.client() as client:
        alone = {
            (k, image): hashlib.sha256(generate(client, **{**body, "n": 1, "seed": 5 + image})).hexdigest()
            for k, body in enumerate(bodies)
            for image in range(body.get("n", 1))
        }
        common = {"model": MODEL, "seed": 5, "steps": STEPS}
        jobs = [client.post("/generate", json={**common, **body}).json()["id"] for body in bodies]
        records = [finished(client, job) for job in jobs]
    together = {(k, image["index"]): image["sha256"] for k, each in enumerate(records) for image in each["images"]}
    assert together == alone


def test_a_picture_carries_its_prompt_and_can_be_verified(service: Any) -> None:
    with service.client() as client:
        data = generate(client, negative_prompt=NEGATIVE_PROMPT, width=24, clip_skip=1, emphasis=True)
        verification = client.post("/verify", content=data, headers={"Content-Type": "image/png"}).json()
    assert verification["match"] is True
    request = verification["request"]
    assert (request["prompt"], request["negative_prompt"], request["width"]) == (PROMPT, NEGATIVE_PROMPT, 24)
    assert (request["clip_skip"], request["emphasis"]) == (1, True)
    assert "height" not in request


def test_frames_are_previews_and_the_film_ends_with_the_picture(service: Any) -> None:
    with service.client() as client:
        body = {"model": MODEL, "prompt": PROMPT, "steps": 3, "preview_every": 1}
        job = client.post("/generate", json=body, headers={"Prefer": "wait=60"}).json()
        assert (job["status"], job["prompt"], job["images"][0]["width"]) == ("succeeded", PROMPT, 16)
        film = client.get(f"/jobs/{job['id']}/animation", params={"format": "gif", "sheet": 1})
        assert Image.open(io.BytesIO(film.content)).n_frames == 4


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"label": 0}, "label"),
        ({"width": 18}, "width"),
        ({"width": 64, "height": 32}, "width"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"clip_skip": 3}, "clip_skip"),
        ({"clip_skip": -1}, "clip_skip"),
        ({"emphasis": "yes"}, "emphasis"),
        ({"model": "digits"}, "prompt"),
    ],
)
def test_what_a_model_does_not_take_is_refused(fields: dict[str, Any], field: str, service: Any) -> None:
    with service.client() as client:
        answer = client.post("/generate", json={"model": MODEL, "prompt": PROMPT, **fields})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_the_openai_route_passes_the_prompt_on(service: Any) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "size": "24x16", "seed": 5, "steps": STEPS}
    with service.client() as client:
        answer = client.post("/v1/images/generations", json=body).json()
        expected = generate(client, width=24)
    assert base64.b64decode(answer["data"][0]["b64_json"]) == expected


def test_the_terminal_takes_clip_skip_and_emphasis(service: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "denoised", "generate", "a (fox:1.4)", "--emphasis", "--clip-skip", "1"]
    options = ["--model", MODEL, "--seed", "5", "--steps", "8", "--out", str(tmp_path), "--url", service.url]
    outcome = fork_server.run([*command, *options], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    (path,) = tmp_path.glob("*.png")
    with service.client() as client:
        assert path.read_bytes() == generate(client, prompt="a (fox:1.4)", emphasis=True, clip_skip=1)
        assert path.read_bytes() != generate(client, prompt="a (fox:1.4)", clip_skip=1)


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_openai_client_makes_pictures_of_a_size(n: int, service: Any) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as program:
        answer = program.images.generate(
            model=MODEL, prompt=PROMPT, n=n, size="16x24", quality="high", style="vivid", background="opaque",  # type: ignore[call-overload]
            extra_body={"seed": 5, "steps": STEPS},
        )  # fmt: skip
        with pytest.raises(openai.BadRequestError, match="multiples of 4"):
            program.images.generate(model=MODEL, prompt=PROMPT, size="18x16")  # type: ignore[call-overload]
        with pytest.raises(openai.BadRequestError, match="too many"):
            program.images.generate(model=MODEL, prompt=PROMPT, size="64x64")  # type: ignore[call-overload]
        with pytest.raises(openai.BadRequestError, match="transparent"):
            program.images.generate(model=MODEL, prompt=PROMPT, background="transparent")
    assert answer.size == "16x24"
    with service.client() as client:
        expected = [generate(client, height=24, seed=5 + k) for k in range(n)]
    assert [base64.b64decode(picture.b64_json) for picture in answer.data] == expected


@pytest.mark.parametrize("partial", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_the_openai_client_streams_previews_and_the_picture(partial: int, service: Any) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as program:
        stream = program.images.generate(
            model=MODEL, prompt=PROMPT, size="24x16", stream=True, partial_images=partial,  # type: ignore[call-overload]
            extra_body={"seed": 5, "steps": STEPS},
        )  # fmt: skip
        *previews, final = list(stream)
    assert [event.partial_image_index for event in previews] == list(range(partial))
    assert {event.size for event in previews} <= {"12x8"}  # one pixel for each latent
    assert final.size == "24x16"
    with service.client() as client:
        assert base64.b64decode(final.b64_json) == generate(client, width=24)


def test_a_client_of_the_web_ui_draws_a_prompt(service: Any) -> None:
    program = webuiapi.WebUIApi(port=int(service.url.rpartition(":")[2]), steps=STEPS)
    options = {"seed": 5, "override_settings": {"sd_model_checkpoint": MODEL}}
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT}
    result = program.txt2img(
        **text, **options, sampler_name="DPM++ 2M Karras", cfg_scale=5, width=24, height=16, n_iter=2
    )
    assert [image.size for image in result.images] == [(24, 16)] * 2
    assert result.info["all_negative_prompts"] == [NEGATIVE_PROMPT] * 2
    with service.client() as client:
        expected = generate(client, **text, width=24, sampler="dpmpp_2m", karras=True, guidance_scale=5)
    assert base64.b64decode(result.json["images"][0]) == expected
    assert program.txt2img(**text, **options).image.size == (16, 16)
    emphasized = program.txt2img(prompt="an oil (painting:1.3)", **options, sampler_name="DDIM", eta=0)
    with service.client() as client:
        expected = generate(client, prompt="an oil (painting:1.3)", emphasis=True, sampler="ddim", guidance_scale=7)
    assert base64.b64decode(emphasized.json["images"][0]) == expected
    with pytest.raises(RuntimeError, match="too many for tiny-sd"):
        program.txt2img(**text, **options, width=512, height=256)


def test_the_terminal_takes_a_prompt(service: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "denoised", "generate", PROMPT, "--model", MODEL, "--seed", "5", "--steps", "8"]
    options = ["--out", str(tmp_path), "--url", service.url]
    outcome = fork_server.run([*command, *options], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    (path,) = tmp_path.glob("*.png")
    assert path.name == "an-oil-painting-of-a-small-red-house-5.png"
    with service.client() as client:
        assert path.read_bytes() == generate(client)


@pytest.mark.slow
def test_a_killed_worker_s_job_ends_with_the_same_bytes(service: Any) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "seed": 9, "steps": 120, "sampler": "euler_a", "n": 2}
    (worker,) = [pid for pid, command in service.children().items() if "-m denoised.worker" in command]
    with service.client() as client:
        undisturbed = finished(client, client.post("/generate", json=body).json()["id"])
        job = client.post("/generate", json=body).json()["id"]
        while client.get(f"/jobs/{job}").json()["progress"]["step"] < 30:
            time.sleep(0.02)
        os.kill(int(worker), signal.SIGKILL)
        record = finished(client, job)
    assert (record["status"], record["attempt"]) == ("succeeded", 2)
    assert [image["sha256"] for image in record["images"]] == [image["sha256"] for image in undisturbed["images"]]
