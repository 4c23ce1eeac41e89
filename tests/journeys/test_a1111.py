"""The package `webuiapi`, unchanged, against the running service: a client of AUTOMATIC1111's web UI."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import webuiapi
from PIL import Image

from denoised.app.http.api_keys import new_key

MOST = 16  # max_images of a model


def connect(service: Any, **options: Any) -> Any:
    """A client as a program written for the web UI creates it."""
    return webuiapi.WebUIApi(host="127.0.0.1", port=int(service.url.rpartition(":")[2]), **options)


@pytest.fixture(scope="module")
def api(service: Any) -> Any:
    return connect(service, sampler="DPM++ 2M", steps=4)


GARMENTS = {"override_settings": {"sd_model_checkpoint": "fashion-mnist"}}
DIGITS = {"override_settings": {"sd_model_checkpoint": "digits"}}
TUNED = {"override_settings": {"sd_model_checkpoint": "fashion-mnist-consistency"}}


def test_a_picture_has_the_bytes_of_generate(api: Any, service: Any) -> None:
    result = api.txt2img(prompt="a seven, please", seed=11, cfg_scale=1.5, scheduler="Karras", **DIGITS)
    assert result.image.size == (8, 8)  # the client sends 512×512 unasked
    assert (result.info["seed"], result.info["sampler_name"], result.info["sd_model_name"]) == (
        11,
        "DPM++ 2M",
        "digits",
    )
    assert result.parameters["prompt"] == "a seven, please"
    body = {"model": "digits", "label": "7", "seed": 11, "steps": 4, "guidance_scale": 1.5}
    with service.client() as plain:
        same = plain.post(
            "/generate", json={**body, "sampler": "dpmpp_2m", "karras": True}, headers={"Accept": "image/png"}
        )
    assert base64.b64decode(result.json["images"][0]) == same.content


@pytest.mark.parametrize(("batch_size", "n_iter"), [(1, 1), (2, 1), (1, 3), (4, 4)])
def test_batches_are_seeds_that_follow_each_other(batch_size: int, n_iter: int, api: Any) -> None:
    result = api.txt2img(prompt="7", seed=20, batch_size=batch_size, n_iter=n_iter, cfg_scale=1.0, **DIGITS)
    count = batch_size * n_iter
    assert len(result.images) == len(result.info["infotexts"]) == count
    assert result.info["all_seeds"] == list(range(20, 20 + count))
    single = api.txt2img(prompt="7", seed=20 + count - 1, cfg_scale=1.0, **DIGITS)
    assert single.json["images"][0] == result.json["images"][-1]


def test_a_random_seed_is_returned_and_makes_the_picture_again(api: Any) -> None:
    first = api.txt2img(prompt="coat", seed=-1, **GARMENTS)
    again = api.txt2img(prompt="coat", seed=first.info["seed"], **GARMENTS)
    other = api.txt2img(prompt="coat", **GARMENTS)
    assert first.json["images"] == again.json["images"]
    assert other.info["seed"] != first.info["seed"]


def test_what_is_not_served_is_refused_by_its_name(api: Any) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"enable_hr": True}, "enable_hr"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"restore_faces": True}, "restore_faces"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"adetailer": [webuiapi.ADetailer(ad_model="face_yolov8n.pt")], "alwayson_scripts": {}}, "ADetailer"),
        ({"sampler_name": "Restart"}, "sampler_name"),
        ({"batch_size": MOST + 1}, "batch_size"),
        ({"width": 1024, "height": 1024}, "1024 is not a size"),
    ]
    for options, name in refused:
        with pytest.raises(RuntimeError) as error:
            api.txt2img(prompt="coat", **GARMENTS, **options)
        status, text = error.value.args
        assert status == 422
        assert name in text
    noise = Image.effect_noise((512, 512), 90)
    with pytest.raises(RuntimeError, match="inpaint_full_res"):
        api.img2img(images=[noise], mask_image=noise, prompt="coat")


def test_a_picture_is_redrawn(api: Any) -> None:
    coat = api.txt2img(prompt="coat", seed=3, steps=5, **GARMENTS).image
    same = api.img2img(images=[coat], prompt="coat", denoising_strength=0.0, steps=5, **GARMENTS).image
    assert same.convert("L").tobytes() == coat.convert("L").tobytes()
    redrawn = api.img2img(images=[coat], prompt="coat", denoising_strength=0.6, steps=5, seed=3, **GARMENTS)
    assert redrawn.image.convert("L").tobytes() != coat.convert("L").tobytes()
    assert redrawn.info["denoising_strength"] == 0.6
    mask = Image.new("L", coat.size, 0)
    mask.paste(255, (0, 0, coat.width // 2, coat.height))
    options = {"inpaint_full_res": False, "inpainting_fill": 1, "steps": 5, **GARMENTS}
    filled = api.img2img(images=[coat], mask_image=mask, prompt="coat", denoising_strength=1.0, **options).image
    right = (coat.width // 2, 0, coat.width, coat.height)
    assert filled.convert("L").crop(right).tobytes() == coat.convert("L").crop(right).tobytes()


def test_lists_are_in_the_clients_words(api: Any) -> None:
    assert {"Euler a", "DPM++ 2M", "DDIM", "PLMS"} <= set(api.util_get_sampler_names())
    assert {"automatic", "karras", "uniform"} <= set(api.util_get_scheduler_names())
    assert any(name.startswith("digits [") for name in api.util_get_model_names())
    assert api.get_loras() == api.get_upscalers() == api.get_sd_vae() == []
    assert api.has_controlnet is api.has_adetailer is False


def test_every_listed_schedule_and_sampler_makes_a_picture(api: Any, service: Any) -> None:
    schedules = api.util_get_scheduler_names()
    assert {"exponential", "sgm_uniform", "beta"} <= set(schedules)
    made = {
        name: api.txt2img(prompt="7", seed=1, scheduler=name, cfg_scale=1.0, **DIGITS).json["images"][0]
        for name in schedules
    }
    assert len(set(made.values())) >= len(made) - 1  # Automatic is Karras here
    names = api.util_get_sampler_names()
    for name in (each for each in names if each != "consistency"):
        assert api.txt2img(prompt="7", sampler_name=name, steps=4, **DIGITS).image.size == (8, 8)
    assert "consistency" in names, "that of some models, and their only one"
    assert api.txt2img(prompt="sneaker", sampler_name="consistency", steps=2, cfg_scale=1, **TUNED).image.size == (
        28,
        28,
    )
    body = {"model": "digits", "label": "7", "seed": 1, "steps": 4, "guidance_scale": 1.0, "sampler": "dpmpp_2m"}
    with service.client() as plain:
        body |= {"spacing": "exponential", "karras": False}
        same = plain.post("/generate", json=body, headers={"Accept": "image/png"})
    assert base64.b64decode(made["exponential"]) == same.content


def test_a_model_is_chosen_for_later_requests(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        api.util_set_model("digits")
        assert api.util_get_current_model().startswith("digits [")
        api.util_wait_for_ready(0.1)
        assert api.txt2img(prompt="7").image.size == (8, 8)
    finally:
        api.util_set_model("fashion-mnist")
    assert api.txt2img(prompt="coat").image.size == (28, 28)


def test_progress_is_shown_and_an_interrupt_ends_it(api: Any) -> None:
    ended: list[Any] = []

    def generate() -> None:
        try:
            ended.append(api.txt2img(prompt="coat", batch_size=MOST, steps=1000, **GARMENTS))
        except RuntimeError as error:
            ended.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    end = time.monotonic() + 60
    while not (found := api.get_progress())["current_image"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert 0 < found["progress"] < 1
    assert found["state"]["sampling_steps"] == 1000
    assert Image.open(io.BytesIO(base64.b64decode(found["current_image"]))).size == (28, 28)
    assert api.interrupt() == {}
    thread.join()
    assert ended[0].args[0] == 409
    api.util_wait_for_ready(0.1)


def test_a_client_that_disconnects_cancels_its_job(service: Any) -> None:
    body = {"prompt": "coat", "steps": 1000, "batch_size": MOST, **GARMENTS}
    with service.client() as plain:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.url}/sdapi/v1/txt2img", json=body, timeout=1.0, trust_env=False)
        end = time.monotonic() + 30
        while (job := plain.get("/jobs").json()["jobs"][0])["status"] != "canceled":
            assert job["steps"] == 1000
            assert time.monotonic() < end
            time.sleep(0.1)


def test_the_key_is_the_password(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("a1111")
    key, line = new_key("program")
    (folder / "keys").write_text(f"{line}\n")
    service = start_service(folder / "data", environment={"DENOISED_API_KEYS_FILE": str(folder / "keys")})
    picture = connect(service, username="anybody", password=key).txt2img(prompt="7", steps=2, **DIGITS)
    assert picture.image.size == (8, 8)
    with pytest.raises(RuntimeError, match="unknown"):
        connect(service, username="anybody", password="wrong").txt2img(prompt="7")
    service.stop()
