"""`denoised serve --model FOLDER --controlnets FOLDER`: ControlNets over HTTP, in the client, the terminal and in
pictures, which are those of diffusers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image

from denoised import Client
from tests import fork_server
from tests.control_nets import control_image, png, save_control_net, save_xl_control_net
from tests.text_pipelines import (
    NEGATIVE_PROMPT,
    PROMPT,
    SCHEDULER,
    SIZE,
    UNET,
    build_xl_pipeline,
    picture_of,
    save_pipeline,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers

STEPS = 6
LEVELS = 2  # of 255, how far a pixel may be from diffusers'
MODEL, XL_MODEL = "tiny-sd", "tiny-xl"
EDGES, POSE = control_image(1), control_image(2)
GUIDED: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": 5.0}
UNGUIDED: dict[str, Any] = {"prompt": PROMPT, "guidance_scale": 1.0}


def base64_of(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def control(name: str, image: Image.Image, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": base64_of(image), **fields}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def pipelines(folder: Path) -> dict[str, Any]:
    nets = folder / "nets"
    save_control_net(nets / "wide", unet={**UNET, "cross_attention_dim": 48})
    (nets / "old.safetensors").write_bytes(b"")
    return {
        MODEL: save_pipeline(folder / MODEL),
        XL_MODEL: save_pipeline(folder / XL_MODEL, build=build_xl_pipeline),
        "edges": save_control_net(nets / "edges", seed=1),
        "pose": save_control_net(nets / "pose", seed=2),
        "shuffle": save_control_net(nets / "shuffle", seed=3, global_pool_conditions=True),
        "xl-edges": save_xl_control_net(nets / "xl-edges", seed=4),
    }


@pytest.fixture(scope="module")
def service(
    pipelines: Any, folder: Path, start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    options = ("--model", str(folder / MODEL), "--model", str(folder / XL_MODEL), "--controlnets", str(folder / "nets"))
    return start_service(tmp_path_factory.mktemp("controls") / "data", *options)


def generate(client: httpx.Client, **fields: Any) -> bytes:
    body = {"model": MODEL, "prompt": PROMPT, "seed": 5, "steps": STEPS, "sampler": "ddim", **fields}
    answer = client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.content


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def parameters(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Image.open(io.BytesIO(data)).text["parameters"])  # type: ignore[attr-defined]
    return found


def with_control_nets(pipelines: dict[str, Any], names: Sequence[str]) -> StableDiffusionControlNetPipeline:
    nets = [pipelines[name] for name in names]
    parts = {name: part for name, part in pipelines[MODEL].components.items() if name != "scheduler"}
    pipeline = StableDiffusionControlNetPipeline(
        **parts,
        controlnet=nets[0] if len(nets) == 1 else nets,
        scheduler=DDIMScheduler.from_config(SCHEDULER),
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# The ControlNets of a request, and the same in diffusers' words.
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one": ([control("edges", EDGES)], {"image": EDGES}),
    "scale and interval": (
        [control("edges", EDGES, scale=0.6, start=0.2, end=0.7)],
        {
            "image": EDGES,
            "controlnet_conditioning_scale": 0.6,
            "control_guidance_start": 0.2,
            "control_guidance_end": 0.7,
        },
    ),
    "several": (
        [control("edges", EDGES, scale=0.7), control("pose", POSE, end=0.5)],
        {
            "image": [EDGES, POSE],
            "controlnet_conditioning_scale": [0.7, 1.0],
            "control_guidance_start": [0.0, 0.0],
            "control_guidance_end": [1.0, 0.5],
        },
    ),
    "guess mode": (
        [control("edges", EDGES, scale=0.8, guess_mode=True)],
        {"image": EDGES, "controlnet_conditioning_scale": 0.8, "guess_mode": True},
    ),
    "pooled": ([control("shuffle", EDGES)], {"image": EDGES}),
}


@pytest.mark.parametrize("text", [GUIDED, UNGUIDED], ids=["guided", "unguided"])
@pytest.mark.parametrize("case", CASES)
def test_a_picture_is_that_of_diffusers(case: str, text: dict[str, Any], service: Any, pipelines: Any) -> None:
    controls, theirs = CASES[case]
    pipeline = with_control_nets(pipelines, [each["name"] for each in controls])
    expected = picture_of(pipeline, 5, num_inference_steps=STEPS, height=SIZE, width=SIZE, **text, **theirs)
    with service.client() as client:
        found, without = generate(client, controls=controls, **text), generate(client, **text)
    assert np.abs(pixels(found) - expected.astype(int)).max() <= LEVELS
    assert np.abs(pixels(found) - pixels(without)).max() > 2 * LEVELS


@pytest.mark.parametrize("text", [GUIDED, UNGUIDED], ids=["guided", "unguided"])
def test_a_picture_of_stable_diffusion_xl_is_that_of_diffusers(
    text: dict[str, Any], service: Any, pipelines: Any
) -> None:
    parts = {name: part for name, part in pipelines[XL_MODEL].components.items() if name != "scheduler"}
    scheduler = EulerDiscreteScheduler.from_config(pipelines[XL_MODEL].scheduler.config)
    pipeline = StableDiffusionXLControlNetPipeline(
        **parts, controlnet=pipelines["xl-edges"], scheduler=scheduler, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "height": SIZE, "width": SIZE, "controlnet_conditioning_scale": 0.9}
    expected = picture_of(pipeline, 5, image=EDGES, **options, **text)
    asked = {"model": XL_MODEL, "sampler": "euler", "controls": [control("xl-edges", EDGES, scale=0.9)]}
    with service.client() as client:
        found = generate(client, **asked, **text)
    assert np.abs(pixels(found) - expected.astype(int)).max() <= LEVELS


def test_the_card_lists_those_that_fit_and_the_log_and_doctor_name_the_others(service: Any, folder: Path) -> None:
    with service.client() as client:
        cards = {card["name"]: card for card in client.get("/models").json()}
    assert [control["name"] for control in cards[MODEL]["controls"]] == ["edges", "pose", "shuffle"]
    assert sorted(cards[MODEL]["controls"][0]) == ["channels", "digest", "name"]
    assert "controls" in cards[MODEL]["inputs"]
    assert [control["name"] for control in cards[XL_MODEL]["controls"]] == ["xl-edges"]
    assert (cards["digits"]["controls"], "controls" in cards["digits"]["inputs"]) == ([], False)
    problems = (
        "wide: this ControlNet is for another model: its cross_attention_dim = 48, the model's is 32",
        "old.safetensors: is a single file (allowed: a folder in diffusers' format, with config.json)",
    )
    log = service.log.read_text()
    assert f"{MODEL} does not offer a ControlNet" in log
    assert all(problem in log for problem in problems)
    command = [sys.executable, "-m", "denoised.worker.diagnostics", "--model", str(folder / MODEL)]
    command += ["--controlnets", str(folder / "nets")]
    lines = fork_server.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [each for each in map(json.loads, lines) if each["check"] == f"ControlNets of {MODEL}"]
    assert (found[0]["state"], found[0]["message"]) == ("ok", "edges, pose, shuffle")
    assert all(any(problem in each["message"] for each in found[1:]) for problem in problems)


def test_a_picture_carries_the_digest_of_its_control_picture_and_verify_asks_for_it(service: Any) -> None:
    with service.client() as client:
        digests = {each["name"]: each["digest"] for card in client.get("/models").json() for each in card["controls"]}
        data = generate(client, controls=[control("edges", EDGES, scale=0.5), control("pose", POSE)])
        named = [f"sha256:{hashlib.sha256(png(image)).hexdigest()}" for image in (EDGES, POSE)]
        assert parameters(data)["controls"] == [
            {
                "name": name,
                "image": image,
                "scale": scale,
                "start": 0.0,
                "end": 1.0,
                "guess_mode": False,
                "digest": digests[name],
            }
            for name, image, scale in zip(("edges", "pose"), named, (0.5, 1.0), strict=True)
        ]
        assert "controls" not in parameters(generate(client))
        stored = client.post("/verify", content=data, headers={"Content-Type": "image/png"}).json()
        assert stored["match"] is True, "both pictures are still stored"
        files = {"picture": data, "controls.0.image": png(EDGES), "controls.1.image": png(POSE)}
        assert client.post("/verify", files=files).json()["match"] is True
        other = client.post("/verify", files={**files, "controls.1.image": png(EDGES)}).json()
        more = client.post("/verify", files={**files, "controls.2.image": png(EDGES)}).json()
    assert [error["field"] for error in other["errors"]] == ["controls.1.image"]
    assert f"the file has {named[0]}, but the picture was made from {named[1]}" in other["errors"][0]["message"]
    assert "was given, but the picture was made without controls.2.image" in more["errors"][0]["message"]


def test_a_picture_that_is_not_stored_any_more_is_asked_for(service: Any) -> None:
    unknown = "sha256:" + "0" * 64
    body = {"model": MODEL, "prompt": PROMPT, "controls": [{"name": "edges", "image": unknown}]}
    with service.client() as client:
        answer = client.post("/generate", json=body)
    (error,) = answer.json()["errors"]
    assert error["field"] == "controls.0.image"
    assert "stored" in error["message"]


def test_every_source_of_a_picture_gives_the_same_bytes_and_another_size_is_said(service: Any) -> None:
    with service.client() as client:
        job = client.post("/generate", json={"model": MODEL, "prompt": PROMPT, "seed": 9, "steps": 2}).json()
        client.get(f"/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})
        image = client.get(f"/jobs/{job['id']}/images/0").content
        text = base64.b64encode(image).decode()
        expected = generate(client, controls=[{"name": "edges", "image": text}])
        assert generate(client, controls=[{"name": "edges", "image": f"job:{job['id']}/images/0"}]) == expected
        form = {"model": MODEL, "prompt": PROMPT, "seed": "5", "steps": str(STEPS), "sampler": "ddim"}
        form["controls"] = json.dumps([{"name": "edges"}])
        headers = {"Accept": "image/png"}
        answer = client.post("/generate", data=form, files={"controls.0.image": image}, headers=headers)
        assert answer.content == expected, answer.text
        larger = control_image(3, (4 * SIZE, 2 * SIZE))
        body = {"model": MODEL, "prompt": PROMPT, "controls": [control("edges", larger)]}
        (warning,) = client.post("/generate", json=body).json()["warnings"]
    assert warning["field"] == "controls.0.image"
    assert "64×32 pixels were resized to 32×16 and cropped to the 16×16 in the center" in warning["message"]


def test_a_variation_keeps_the_control_nets(service: Any) -> None:
    with service.client() as client:
        body = {"model": MODEL, "prompt": PROMPT, "controls": [control("edges", EDGES)], "steps": 2}
        first = client.post("/generate", json=body, headers={"Prefer": "wait=30"}).json()
        again = {"variation": f"job:{first['id']}/images/0"}
        second = client.post("/generate", json=again, headers={"Prefer": "wait=30"}).json()
    assert (second["status"], second["controls"]) == ("succeeded", first["controls"])


@pytest.mark.parametrize(
    ("controls", "field", "message"),
    [
        ([control("depth", EDGES)], "controls.0.name", '"depth" is not offered by tiny-sd (offered: edges, pose, shuf'),
        ([control("edges", EDGES, scale=4.5)], "controls.0.scale", "4.5 was given (allowed: 4 or less)"),
        ([control("edges", EDGES, start=0.5, end=0.5)], "controls.0.end", "0.5 is not over start = 0.5"),
        ([control("edges", EDGES, guess_mode=1)], "controls.0.guess_mode", "(allowed: true or false)"),
        ([control("edges", EDGES, digest="0")], "controls.0.digest", "other weights are served under the name"),
        ([control("edges", EDGES, weight=1)], "controls.0.weight", "is not a field"),
        ([{"name": "edges"}], "controls.0.image", "is missing"),
        ([{"name": "edges", "image": "http://example.com/a.png"}], "controls.0.image", "URLs are not fetched"),
        ([{"name": "edges", "image": "AAAA"}], "controls.0.image", "the file is not a PNG, JPEG or WebP"),
        ([control("edges", EDGES)] * 5, "controls", "has 5 items (allowed: at most 4)"),
        ({"name": "edges"}, "controls", "(allowed: a list)"),
    ],
)
def test_what_cannot_be_served_is_refused_by_field_value_and_limit(
    controls: Any, field: str, message: str, service: Any
) -> None:
    with service.client() as client:
        answer = client.post("/generate", json={"model": MODEL, "prompt": PROMPT, "controls": controls})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_a_model_without_control_nets_refuses_them(service: Any) -> None:
    with service.client() as client:
        body = {"model": "digits", "label": 3, "controls": [control("edges", EDGES)]}
        answer = client.post("/generate", json=body)
    assert [error["field"] for error in answer.json()["errors"]] == ["controls"]


def test_the_client_and_the_terminal_name_control_nets(service: Any, tmp_path: Path) -> None:
    file = tmp_path / "edges.png"
    file.write_bytes(png(EDGES))
    with service.client() as client:
        expected = generate(client, controls=[control("edges", EDGES, scale=0.8)])
    fields: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "seed": 5, "steps": STEPS, "sampler": "ddim"}
    with Client(service.url) as client:
        (model,) = [each for each in client.models() if each.name == MODEL]
        assert model.controls == ("edges", "pose", "shuffle")
        job = client.wait(client.submit(**fields, controls=[{"name": "edges", "image": file, "scale": 0.8}]).id)
        assert [(each.name, each.scale) for each in job.controls] == [("edges", 0.8)]
        assert client.image(job.images[0]) == expected
        assert client.verify(expected, controls=[file]).match
    out = tmp_path / "out"
    options = ["--control", f"edges={file}:0.8", "--out", str(out), "--url", service.url]
    command = [sys.executable, "-m", "denoised", "generate", PROMPT, "--model", MODEL, "--seed", "5"]
    command += ["--steps", str(STEPS), "--sampler", "ddim", *options]
    outcome = fork_server.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    (path,) = out.glob("*.png")
    assert path.read_bytes() == expected
    verify = [sys.executable, "-m", "denoised", "verify", str(path), "--control", str(file), "--url", service.url]
    assert "the bytes are equal" in fork_server.run(verify, capture_output=True, text=True, check=True).stdout
    wrong = fork_server.run([*command[:5], "--control", "edges"], capture_output=True, text=True, check=False)
    assert "allowed: NAME=FILE[:SCALE]" in wrong.stderr
