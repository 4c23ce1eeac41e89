"""`denoised serve --model FOLDER --loras FOLDER`: adapters over HTTP, in the client, the terminal and in pictures."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from denoised import Client
from denoised.model.checkpoints.text_to_image.text_pipeline import read_text_pipeline
from tests import fork_server
from tests.lora_adapters import kohya, peft, targets_of, write_lora
from tests.text_pipelines import NEGATIVE_PROMPT, PROMPT, SCHEDULER, build_xl_pipeline, picture_of, save_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and peft

STEPS = 6
LEVELS = 2  # of 255, how far a pixel may be from diffusers'
MODEL, XL_MODEL = "tiny-sd", "tiny-xl"
LORAS = [{"name": "style", "weight": 0.75}, {"name": "object", "weight": -0.5}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionPipeline:
    pipeline = save_pipeline(folder / MODEL)
    read = read_text_pipeline(folder / MODEL)
    networks = {"unet": read.unet, "text_encoder": read.text_encoders[0]}
    write_lora(folder / "loras/style.safetensors", targets_of(networks, "attn", "mlp"), peft, seed=1)
    write_lora(folder / "loras/object.safetensors", targets_of(networks, "attn1", "conv1", "self_attn"), kohya, seed=2)
    (folder / "loras/other.safetensors").write_bytes(b"\x80\x04 a pickle, not a file of tensors")
    pipeline.scheduler = DDIMScheduler.from_config(SCHEDULER)
    return pipeline


@pytest.fixture(scope="module")
def xl_pipeline(folder: Path) -> Any:
    pipeline = save_pipeline(folder / XL_MODEL, build=build_xl_pipeline, unet={"layers_per_block": 2})
    read = read_text_pipeline(folder / XL_MODEL)
    networks = {"unet": read.unet, "text_encoder": read.text_encoders[0], "text_encoder_2": read.text_encoders[1]}
    for seed, (name, dialect) in enumerate({"xl-kohya": kohya, "xl-peft": peft}.items()):
        write_lora(
            folder / f"loras/{name}.safetensors", targets_of(networks, "attn", "mlp"), dialect, rank=1, seed=seed
        )
    return pipeline


@pytest.fixture(scope="module")
def service(
    pipeline: Any,
    xl_pipeline: Any,
    folder: Path,
    start_service: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    options = ("--model", str(folder / MODEL), "--model", str(folder / XL_MODEL), "--loras", str(folder / "loras"))
    return start_service(tmp_path_factory.mktemp("loras") / "data", *options)


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


def test_the_card_lists_the_adapters_that_fit_and_the_log_names_the_others(service: Any) -> None:
    with service.client() as client:
        cards = {card["name"]: card for card in client.get("/models").json()}
    assert [sorted(lora) for lora in cards[MODEL]["loras"]] == [["digest", "name"]] * 2
    assert [lora["name"] for lora in cards[MODEL]["loras"]] == ["object", "style"]
    assert "loras" in cards[MODEL]["inputs"]
    assert [lora["name"] for lora in cards[XL_MODEL]["loras"]] == ["xl-kohya", "xl-peft"]
    assert cards["digits"]["loras"] == []
    log = service.log.read_text()
    assert f"{MODEL} does not offer an adapter" in log
    assert "other.safetensors: is a pickle, which can run code" in log
    base = "this adapter is for a model whose text has 32 channels; the model is one whose text has 56 channels"
    assert f"style.safetensors: {base}" in log


def test_a_picture_is_that_of_diffusers_with_the_same_adapters(
    service: Any, pipeline: StableDiffusionPipeline, folder: Path
) -> None:
    for lora in LORAS:
        name = lora["name"]
        pipeline.load_lora_weights(folder / "loras", weight_name=f"{name}.safetensors", adapter_name=name)
    pipeline.set_adapters([lora["name"] for lora in LORAS], [lora["weight"] for lora in LORAS])
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": 5.0}
    expected = picture_of(pipeline, 5, num_inference_steps=STEPS, **text)
    with service.client() as client:
        found = generate(client, loras=LORAS, **text)
        without = generate(client, **text)
    assert np.abs(pixels(found) - expected.astype(int)).max() <= LEVELS
    assert np.abs(pixels(found) - pixels(without)).max() > 5 * LEVELS


@pytest.mark.parametrize("name", ["xl-kohya", "xl-peft"])
def test_a_picture_of_stable_diffusion_xl_is_that_of_diffusers_with_the_same_adapter(
    name: str, service: Any, xl_pipeline: Any, folder: Path
) -> None:
    """Both text encoders and the U-Net are changed."""
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "guidance_scale": 5.0}
    xl_pipeline.load_lora_weights(folder / "loras", weight_name=f"{name}.safetensors", adapter_name=name)
    xl_pipeline.set_adapters([name], [3.0])
    try:
        expected = picture_of(xl_pipeline, 5, num_inference_steps=STEPS, **text)
    finally:
        xl_pipeline.unload_lora_weights()
    with service.client() as client:
        options = {"model": XL_MODEL, "sampler": "euler", **text}
        found, without = generate(client, loras=[{"name": name, "weight": 3.0}], **options), generate(client, **options)
    assert np.abs(pixels(found) - expected.astype(int)).max() <= LEVELS
    assert np.abs(pixels(found) - pixels(without)).max() > 5 * LEVELS


def test_a_picture_carries_its_adapters_and_can_be_verified(service: Any) -> None:
    with service.client() as client:
        digests = {lora["name"]: lora["digest"] for card in client.get("/models").json() for lora in card["loras"]}
        data = generate(client, loras=LORAS)
        assert parameters(data)["loras"] == [
            {"name": "object", "weight": -0.5, "digest": digests["object"]},
            {"name": "style", "weight": 0.75, "digest": digests["style"]},
        ], "in order of name: the order of a request changes no picture"
        assert data == generate(client, loras=LORAS[::-1])
        assert "loras" not in parameters(generate(client, loras=[]))
        headers = {"Content-Type": "image/png"}
        verification = client.post("/verify", content=data, headers=headers).json()
        assert verification["match"] is True
        body = {name: value for name, value in parameters(data).items() if name != "numerics"}
        body["loras"][0]["digest"] = "0123456789ab"
        answer = client.post("/generate", json=body).json()
    (error,) = answer["errors"]
    assert error["field"] == "loras.0.digest"
    assert f'another file is served under the name "object" (served: {digests["object"]})' in error["message"]


@pytest.mark.parametrize(
    ("loras", "field", "message"),
    [
        ([{"name": "watercolor"}], "loras.0.name", '"watercolor" is not offered by tiny-sd (offered: object, style)'),
        ([{"name": "style"}, {"name": "style", "weight": 2}], "loras.1.name", '"style" is named twice'),
        ([{"name": "style", "weight": 4.5}], "loras.0.weight", "4.5 was given (allowed: 4 or less)"),
        ([{"name": "style", "weight": "1"}], "loras.0.weight", '"1" was given (allowed: a number)'),
        ([{"weight": 1}], "loras.0.name", "is missing"),
        ([{"name": "style", "strength": 1}], "loras.0.strength", "is not a field"),
        ([{"name": "style"}] * 5, "loras", "has 5 items (allowed: at most 4)"),
        ({"name": "style"}, "loras", "(allowed: a list)"),
    ],
)
def test_what_cannot_be_served_is_refused_by_field_value_and_limit(
    loras: Any, field: str, message: str, service: Any
) -> None:
    with service.client() as client:
        answer = client.post("/generate", json={"model": MODEL, "prompt": PROMPT, "loras": loras})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_a_model_without_adapters_refuses_them(service: Any) -> None:
    with service.client() as client:
        answer = client.post("/generate", json={"model": "digits", "label": 3, "loras": [{"name": "style"}]})
    assert [error["field"] for error in answer.json()["errors"]] == ["loras"]


def test_the_client_and_the_terminal_name_adapters(service: Any, tmp_path: Path) -> None:
    with service.client() as client:
        expected = generate(client, loras=LORAS)
    fields: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "seed": 5, "steps": STEPS, "sampler": "ddim"}
    with Client(service.url) as client:
        (model,) = [each for each in client.models() if each.name == MODEL]
        assert model.loras == ("object", "style")
        job = client.wait(client.submit(**fields, loras=LORAS).id)
        assert [(lora.name, lora.weight) for lora in job.loras] == [("object", -0.5), ("style", 0.75)]
        assert client.image(job.images[0]) == expected
    options = ["--lora", "style:0.75", "--lora", "object:-.5", "--out", str(tmp_path), "--url", service.url]
    command = [sys.executable, "-m", "denoised", "generate", PROMPT, "--model", MODEL, "--seed", "5"]
    command += ["--steps", str(STEPS), "--sampler", "ddim", *options]
    outcome = fork_server.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    (path,) = tmp_path.glob("*.png")
    assert path.read_bytes() == expected
    listing = [sys.executable, "-m", "denoised", "models", "--url", service.url]
    assert "object, style" in fork_server.run(listing, capture_output=True, text=True, check=True).stdout


def test_a_client_of_the_web_ui_names_adapters_in_the_prompt(service: Any) -> None:
    program = webuiapi.WebUIApi(port=int(service.url.rpartition(":")[2]), steps=STEPS, sampler="DDIM")
    assert [lora["name"] for lora in program.get_loras()] == ["object", "style", "xl-kohya", "xl-peft"]
    options = {"seed": 5, "cfg_scale": 1.0, "eta": 0, "override_settings": {"sd_model_checkpoint": MODEL}}
    result = program.txt2img(prompt=f"{PROMPT} <lora:style:0.75><lora:object:-0.5>", **options)
    with service.client() as client:
        expected = generate(client, loras=LORAS, guidance_scale=1.0)
    assert base64.b64decode(result.json["images"][0]) == expected
    with pytest.raises(RuntimeError, match="object, style"):
        program.txt2img(prompt=f"{PROMPT} <lora:missing:1>", **options)
