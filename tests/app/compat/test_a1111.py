"""`/sdapi/v1` with a fake worker: refusals, translation, progress and authentication. `tests/journeys/test_a1111.py`
runs the package `webuiapi` against real workers."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from denoised.app.compat.a1111.a1111_schemas import Img2ImgRequest, Txt2ImgRequest
from denoised.app.compat.a1111.img2img import translate_img2img
from denoised.app.compat.a1111.sampler_names import SAMPLERS, find_sampler, split_name
from denoised.app.compat.a1111.translation import renamed, translate
from denoised.app.http.errors import InvalidRequest
from denoised.jobs.store.update import JobUpdate
from denoised.model.serving.card import ModelCard
from tests.app.compat.queued_worker import start_worker

MakeClient = Callable[..., TestClient]
TXT2IMG = "/sdapi/v1/txt2img"
# What the package `webuiapi` sends for `txt2img(prompt="sneaker")`.
CLIENT_DEFAULTS: dict[str, Any] = {
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_checkpoint_name": None,
    "hr_prompt": "",
    "denoising_strength": 0.7,
    "firstphase_width": 0,
    "prompt": "sneaker",
    "styles": [],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 20,
    "cfg_scale": 7.0,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "sampler_name": "DDIM",
    "scheduler": "automatic",
    "sampler_index": "DDIM",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}


@pytest.fixture
def painter(painter_of: Callable[..., ModelCard]) -> ModelCard:
    return painter_of(
        samplers=["ddim", "euler_a", "dpmpp_2m", "heun", "langevin"],
        karras_samplers=["dpmpp_2m", "heun"],
        digest="0123456789ab",
    )


def given(card: ModelCard, **body: Any) -> dict[str, Any]:
    """The translated fields that are not None."""
    fields = translate(Txt2ImgRequest.model_validate(body), card)
    return {name: value for name, value in fields.items() if value is not None}


def refused(card: ModelCard, **body: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refusal:
        translate(Txt2ImgRequest.model_validate({"prompt": "sneaker", **body}), card)
    return {error["field"]: error["message"] for error in refusal.value.extra["errors"]}


def error(answer: Any, status: int) -> dict[str, Any]:
    """An error object, which has exactly these members."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert set(body) == {"error", "detail", "body", "errors"}
    return body


def png(shade: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("L", (28, 28), shade).save(out, "png")
    return out.getvalue()


# Translation


def test_what_a_client_sends_unasked_is_accepted(card_of: Callable[..., ModelCard]) -> None:
    assert given(card_of(), **CLIENT_DEFAULTS) == {
        "model": "shoes",
        "label": 0,
        "n": 1,
        "sampler": "ddim",
        "steps": 20,
        "eta": 1.0,
        "guidance_scale": 7.0,
        "preview_every": 10,
    }


def test_a_text_model_gets_prompt_and_size(painter: ModelCard) -> None:
    body = {"prompt": "a goat", "negative_prompt": "a sheep", "width": 32, "height": 48, "seed": 3, "n_iter": 2}
    found = given(painter, **body, batch_size=3, cfg_scale=5, steps=4)
    assert found == {
        "model": "painter",
        "prompt": "a goat",
        "negative_prompt": "a sheep",
        "width": 32,
        "height": 48,
        "n": 6,
        "seed": 3,
        "steps": 4,
        "guidance_scale": 5.0,
        "preview_every": 0,
    }


@pytest.mark.parametrize("prompt", ["a (goat)", "a [goat]", r"a goat \(animal\)", "a goat BREAK a hill"])
def test_emphasis_is_read_as_the_web_ui_always_does(prompt: str, painter: ModelCard, card_of: Any) -> None:
    assert given(painter, prompt=prompt)["emphasis"] is True
    assert given(painter, prompt="a goat", negative_prompt=prompt)["emphasis"] is True
    assert "emphasis" not in given(painter, prompt="a goat, breaking: 1.2")
    assert "emphasis" not in given(card_of(), prompt="(sneaker)")


def test_layers_of_the_text_encoder_are_counted_from_one(painter: ModelCard) -> None:
    def skipped(layers: Any) -> Any:
        return given(painter, prompt="a goat", override_settings={"CLIP_stop_at_last_layers": layers}).get("clip_skip")

    assert [skipped(layers) for layers in (None, 1, 2, 3)] == [None, None, 1, 2]
    for layers in (4, -1, 1.5, "2"):
        errors = refused(painter, override_settings={"CLIP_stop_at_last_layers": layers})
        assert "allowed: 1 … 3" in errors["override_settings.CLIP_stop_at_last_layers"]


def test_the_web_uis_default_size_is_the_models_own_where_it_cannot_be_made(painter: ModelCard, card_of: Any) -> None:
    sides = {"width": 512, "height": 512}
    assert "width" not in given(painter, prompt="a goat", **sides)
    large = painter.model_copy(update={"max_pixels": 2**20})
    assert given(large, prompt="a goat", **sides)["width"] == 512
    assert given(painter, prompt="a goat", width=512, height=256)["width"] == 512  # admission refuses it
    assert refused(card_of(), width=512, height=28) == {"width": "512 is not a size of shoes (allowed: 28)"}
    assert "width" not in given(card_of(), prompt="sneaker", width=28, height=28)


def test_guidance_toward_nothing_is_left_out(painter: ModelCard) -> None:
    assert "guidance_scale" not in given(painter, prompt=" ", cfg_scale=7)
    assert given(painter, prompt="", negative_prompt="a sheep", cfg_scale=7)["guidance_scale"] == 7.0


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("DPM++ 2M", None, {"sampler": "dpmpp_2m", "karras": True}),
        ("DPM++ 2M", "automatic", {"sampler": "dpmpp_2m", "karras": True}),
        ("DPM++ 2M", "Karras", {"sampler": "dpmpp_2m", "karras": True}),
        ("DPM++ 2M Karras", "Automatic", {"sampler": "dpmpp_2m", "karras": True}),
        ("dpm++ 2m karras", "uniform", {"sampler": "dpmpp_2m", "karras": True}),
        ("DPM++ 2M", "uniform", {"sampler": "dpmpp_2m", "spacing": "linspace", "karras": False}),
        ("k_dpmpp_2m", "Uniform", {"sampler": "dpmpp_2m", "spacing": "linspace", "karras": False}),
        ("Euler a", "Automatic", {"sampler": "euler_a"}),
        ("Heun Karras", None, {"sampler": "heun", "karras": True}),
        ("langevin", "automatic", {"sampler": "langevin"}),
        ("", "Karras", {"sampler": "ddim"}),
        ("", "Automatic", {}),  # the card's sampler, with the card's noise levels
        (None, None, {}),
    ],
)
def test_samplers_and_schedules_have_the_web_uis_names(
    sampler: str | None, schedule: str | None, expected: dict[str, Any], painter: ModelCard
) -> None:
    body = {"prompt": "a goat", "sampler_name": sampler, "scheduler": schedule}
    if expected == {"sampler": "ddim"} and schedule == "Karras":
        assert "DDIM takes no such levels" in refused(painter, **body)["scheduler"]
        return
    fields = given(painter, **body)
    assert {name: fields[name] for name in ("sampler", "spacing", "karras") if name in fields} == expected


def test_the_old_name_of_the_sampler_field_is_read_if_the_new_one_is_missing(painter: ModelCard) -> None:
    assert given(painter, prompt="a goat", sampler_index="Euler a")["sampler"] == "euler_a"
    assert given(painter, prompt="a goat", sampler_index="Euler a", sampler_name="Heun")["sampler"] == "heun"


def test_every_sampler_is_found_under_each_of_its_names(card_of: Callable[..., ModelCard]) -> None:
    card = card_of(samplers=[each.sampler for each in SAMPLERS])
    for each in SAMPLERS:
        for name in (each.name, each.sampler, each.name.upper(), *each.aliases):
            assert find_sampler(name, [card]) == each
        assert split_name(each.name) == (each.name, None)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"enable_hr": True}, "enable_hr", "hires fix"),
        ({"script_name": "x/y/z plot"}, "script_name", "scripts"),
        ({"restore_faces": True}, "restore_faces", "face restoration"),
        ({"tiling": True}, "tiling", "tiling"),
        ({"subseed_strength": 0.1}, "subseed_strength", "variation"),
        ({"seed_resize_from_w": 256}, "seed_resize_from_w", "256"),
        ({"refiner_checkpoint": "other"}, "refiner_checkpoint", "refiner"),
        ({"styles": ["photo"]}, "styles", "photo"),
        ({"s_churn": 5}, "s_churn", "churn"),
        ({"s_noise": 1.01}, "s_noise", "1.01"),
        ({"infotext": "Steps: 20"}, "infotext", "Steps: 20"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}}, "alwayson_scripts", "ControlNet"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}}, "alwayson_scripts", "ADetailer"),
        ({"override_settings": {"sd_vae": "x"}}, "override_settings.sd_vae", "Automatic"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, "override_settings.CLIP_stop_at_last_layers", "1"),
        ({"override_settings": {"samples_format": "avif"}}, "override_settings.samples_format", "png, webp, jpeg"),
        ({"override_settings": {"sd_model_checkpoint": 3}}, "override_settings.sd_model_checkpoint", "3"),
        ({"sampler_name": "Restart"}, "sampler_name", "offered: Heun, DDIM, DDPM"),
        ({"scheduler": "KL Optimal"}, "scheduler", "Automatic, Uniform, Karras"),
        ({"sampler_name": "DDPM", "eta": 0.5}, "eta", "0.5"),
        ({"batch_size": 17}, "batch_size", "16"),
        ({"batch_size": 5, "n_iter": 4}, "n_iter", "16"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(
    body: dict[str, Any], field: str, words: str, card_of: Callable[..., ModelCard]
) -> None:
    found = refused(card_of(), **body)
    assert list(found) == [field]
    assert words in found[field]


@pytest.mark.parametrize(
    "body",
    [
        {"alwayson_scripts": {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}}},
        {"alwayson_scripts": {"controlnet": {"args": [{"enabled": False, "module": "canny"}]}}},
        {"override_settings": {"sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "eta_noise_seed_delta": 0}},
        {"override_settings": {"sd_vae": None, "anything": ""}},
        {"seed_resize_from_w": -1, "seed_resize_from_h": -1, "script_name": "None", "refiner_checkpoint": ""},
        {"save_images": True, "hr_scale": 2.0, "hr_cfg": 1, "force_task_id": "a"},
        {"a_field_of_a_fork": 3.5},
        {"eta": 0.3, "sampler_name": "Heun"},
    ],
)
def test_defaults_and_fields_without_effect_pass(body: dict[str, Any], card_of: Callable[..., ModelCard]) -> None:
    assert given(card_of(), prompt="sneaker", **body)["label"] == 0


@pytest.mark.parametrize(
    "prompt",
    [
        "a <lyco:x:0.8> goat",
        "a goat AND a sheep",
        "a [goat|sheep]",
        "a [goat:sheep:0.5]",
        "[sheep:10] a",
        "<hypernet:x>",
    ],
)
def test_prompt_syntax_that_changes_the_sampling_is_refused(prompt: str, painter: ModelCard) -> None:
    assert "is not served" in refused(painter, prompt=prompt)["prompt"]
    assert "is not served" in refused(painter, prompt="", negative_prompt=prompt)["negative_prompt"]


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a goat <lora:ink:0.8>", "a goat", [("ink", 0.8)]),
        ("<lora:ink> a goat", "a goat", [("ink", 1.0)]),
        ("a <lora:ink:-1>goat<lora:oil v2:.5:0.50><lora:x:0>", "a goat", [("ink", -1.0), ("oil v2", 0.5), ("x", 0.0)]),
        ("a <lora:ink:te=0.5:unet=0.5> goat", "a  goat", [("ink", 0.5)]),
        ("<lora:a:1><lora:b:2>", "", [("a", 1.0), ("b", 2.0)]),
        ("<lora:ink:5>", "", None),
        ("<lora:ink:0.5:0.7>", "", None),
        ("<lora:ink:0.5:unet=x>", "", None),
        ("<lora:ink:nan>", "", None),
        ("<lora::1>", "", None),
        ("".join(f"<lora:a{k}>" for k in range(5)), "", None),
    ],
)
def test_tags_in_the_prompt_are_adapters(
    prompt: str, text: str, loras: list[tuple[str, float]] | None, painter: ModelCard
) -> None:
    if loras is None:
        assert "allowed" in refused(painter, prompt=prompt)["prompt"]
        return
    fields = given(painter, prompt=prompt)
    assert fields["prompt"] == text
    assert [(lora["name"], lora["weight"]) for lora in fields["loras"]] == loras
    assert "loras" not in given(painter, prompt=prompt, disable_extra_networks=True)
    negative = refused(painter, prompt="a goat", negative_prompt="<lora:ink:1>")
    assert "<lora:NAME:WEIGHT> in the prompt" in negative["negative_prompt"]


def test_adapters_are_listed_and_unknown_ones_refused(
    make_client: MakeClient, fake_worker: Any, painter: ModelCard
) -> None:
    card = ModelCard.model_validate({**painter.model_dump(), "loras": [{"name": "ink", "digest": "ab"}]})
    fake_worker.serve(card)
    api = make_client()
    assert api.get("/sdapi/v1/loras").json() == [{"name": "ink", "alias": "ink", "path": "ink", "metadata": {}}]
    (item,) = error(api.post(TXT2IMG, json={"prompt": "a goat <lora:oil:1>"}), 422)["detail"]
    assert (item["loc"], "offered: ink" in item["msg"]) == (["body", "prompt"], True)


def test_words_that_only_look_like_syntax_pass(painter: ModelCard) -> None:
    for prompt in ("a goat and a sheep", "BRAND new", "a ratio of 1:2", "[a goat]", "see [1]"):
        assert given(painter, prompt=prompt)["prompt"] == prompt


def test_the_file_format_is_an_option_of_the_request(card_of: Callable[..., ModelCard]) -> None:
    for value, format in (("png", "png"), ("jpg", "jpeg"), ("webp", "webp")):
        settings = {"samples_format": value}
        assert given(card_of(), prompt="sneaker", override_settings=settings)["format"] == format


def test_errors_of_other_fields_get_the_web_uis_names() -> None:
    error = renamed(
        InvalidRequest([("guidance_scale", "a"), ("n", "b"), ("width", "c"), ("loras.0.name", "d")]), Txt2ImgRequest()
    )
    assert [each["field"] for each in error.extra["errors"]] == ["cfg_scale", "batch_size", "width", "prompt"]


# Over HTTP


def test_pictures_parameters_and_info(api: TestClient, fake_worker: Any) -> None:
    worker = start_worker(api, fake_worker, lambda job, attempt: fake_worker.finish(job, attempt, data=png(9)) and None)
    body = {**CLIENT_DEFAULTS, "seed": 7, "sampler_name": "Heun Karras", "distilled_cfg_scale": 3.5}
    answer = api.post(TXT2IMG, json=body)
    worker.join()
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert set(found) == {"images", "parameters", "info"}
    assert [base64.b64decode(each) for each in found["images"]] == [png(9)]
    assert found["parameters"]["hr_upscaler"] == "Latent"
    info = json.loads(found["info"])
    assert (info["seed"], info["all_seeds"], info["all_prompts"]) == (7, [7], ["sneaker"])
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (28, 28, 20, 7.0)
    assert info["extra_generation_params"] == {"Schedule type": "Karras"}
    assert info["ignored"] == ["distilled_cfg_scale"]
    assert info["job"] == answer.headers["x-job-id"]
    lines = info["infotexts"][0].splitlines()
    expected = "Steps: 20, Sampler: Heun, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 28x28, Model: shoes"
    assert lines == ["sneaker", f"{expected}, Version: denoised"]


def test_hashes_have_ten_digits_as_the_web_uis(
    make_client: MakeClient, fake_worker: Any, card_of: Callable[..., ModelCard]
) -> None:
    fake_worker.serve(card_of(digest="0123456789ab"))
    api = make_client()
    worker = start_worker(api, fake_worker, lambda job, attempt: fake_worker.finish(job, attempt) and None)
    info = json.loads(api.post(TXT2IMG, json={"prompt": "sneaker"}).json()["info"])
    worker.join()
    (item,) = api.get("/sdapi/v1/sd-models").json()
    assert info["sd_model_hash"] == item["hash"] == "0123456789"
    assert "Model hash: 0123456789, " in info["infotexts"][0]


def test_without_send_images_only_the_info_is_sent(api: TestClient, fake_worker: Any) -> None:
    worker = start_worker(api, fake_worker, lambda job, attempt: fake_worker.finish(job, attempt) and None)
    found = api.post(TXT2IMG, json={"prompt": "sneaker", "send_images": False}).json()
    worker.join()
    assert found["images"] == []
    parameters = found["parameters"]
    assert {name for name, value in parameters.items() if value is None} == set(), "as clients read numbers from it"
    assert (parameters["seed"], parameters["steps"], parameters["cfg_scale"], parameters["width"]) == (-1, 20, 2.5, 28)
    assert (parameters["sampler_name"], parameters["n_iter"], parameters["negative_prompt"]) == ("DDIM", 1, "")
    assert json.loads(found["info"])["all_seeds"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"prompt": "a cat"}, "prompt"),
        ({"prompt": "sneaker", "cfg_scale": 21}, "cfg_scale"),
        ({"prompt": "sneaker", "cfg_scale": 0.5}, "cfg_scale"),
        ({"prompt": "sneaker", "steps": 0}, "steps"),
        ({"prompt": "sneaker", "steps": 1001}, "steps"),
        ({"prompt": "sneaker", "seed": -2}, "seed"),
        ({"prompt": "sneaker", "seed": 2**53 - 1, "n_iter": 2}, "seed"),
        ({"prompt": "sneaker", "negative_prompt": "a sheep"}, "negative_prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "sneaker", "override_settings": {"sd_model_checkpoint": "gone"}}, "sd_model_checkpoint"),
    ],
)
def test_an_invalid_request_has_fastapis_list(body: dict[str, Any], place: str, api: TestClient) -> None:
    (item,) = error(api.post(TXT2IMG, json=body), 422)["detail"]
    assert set(item) == {"loc", "msg", "type"}
    assert (item["loc"][0], item["loc"][-1]) == ("body", place)


def test_no_value_of_an_unknown_field_breaks_the_response(api: TestClient, fake_worker: Any) -> None:
    worker = start_worker(api, fake_worker, lambda job, attempt: fake_worker.finish(job, attempt) and None)
    content = '{"prompt": "sneaker", "x": NaN, "y": [1e999, {"z": "\\ud800"}], "w": -Infinity}'
    answer = api.post(TXT2IMG, content=content, headers={"Content-Type": "application/json"})
    worker.join()
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"]["y"][0] is None
    wrong = '{"prompt": "sneaker", "override_settings": {"\\ud800": true}, "alwayson_scripts": {"\\ud800": true}}'
    error(api.post(TXT2IMG, content=wrong, headers={"Content-Type": "application/json"}), 422)


def test_many_wrong_options_are_counted_not_listed(api: TestClient) -> None:
    settings = {f"option {k}": k for k in range(1, 2000)}
    found = error(api.post(TXT2IMG, json={"prompt": "sneaker", "override_settings": settings}), 422)
    assert len(found["detail"]) == 21
    assert len(error(api.post("/sdapi/v1/options", json=settings), 422)["detail"]) == 21


def test_every_refusal_under_sdapi_is_an_error_object(
    make_client: MakeClient, fake_worker: Any, missing_redis_url: str
) -> None:
    fake_worker.serve()
    local, away = make_client(max_wait=0.1), make_client(redis_url=missing_redis_url)
    assert error(local.get("/sdapi/v1/nothing"), 404)["error"] == "Not Found"
    found = error(local.post("/sdapi/v1/img2img", json={"init_images": ["x" * 300_000]}), 422)
    assert found["detail"][0]["loc"] == ["body", "init_images"]
    error(local.get(TXT2IMG), 405)
    error(local.post(TXT2IMG, content=b"{"), 415)
    error(local.get("/sdapi/v1/samplers", headers={"Host": "evil.example"}), 403)
    assert error(away.post(TXT2IMG, json={"prompt": "x"}), 503)["error"] == "Service Unavailable"
    assert "it continues" in error(local.post(TXT2IMG, json={"prompt": "sneaker"}), 504)["detail"]


def test_a_job_that_fails_is_an_error_with_its_cause(api: TestClient, fake_worker: Any) -> None:
    def steps(job_id: str, attempt: int) -> None:
        write = JobUpdate(job_id, attempt, 1, image_count=1)
        write.end("failed", {"code": "nan_output", "message": "the network's output is not finite"})
        assert fake_worker.store.write(write)

    worker = start_worker(api, fake_worker, steps)
    found = error(api.post(TXT2IMG, json={"prompt": "sneaker"}), 500)
    worker.join()
    assert found["error"] == "nan_output"
    assert "not finite" in found["detail"]


def basic(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'user:{password}'.encode()).decode()}"}


def test_a_key_is_a_bearer_or_the_password_of_basic_authentication(make_client: MakeClient, fake_worker: Any) -> None:
    fake_worker.serve()
    api = make_client(keys=("first", "sec:ond"))
    models = "/sdapi/v1/sd-models"
    assert api.get(models).status_code == 200
    assert api.get(models, headers=basic("first")).status_code == 200
    assert api.get(models, headers=basic("sec:ond")).status_code == 200
    for headers in (
        basic("wrong"),
        basic(""),
        {"Authorization": "Basic !"},
        {"Authorization": "Basic /w=="},
        {"Authorization": ""},
    ):
        answer = api.get(models, headers=headers)
        error(answer, 401)
        assert answer.headers["www-authenticate"] == 'Basic realm="denoised", Bearer'
    elsewhere = api.get("/models", headers=basic("first"))
    assert (elsewhere.status_code, elsewhere.headers["www-authenticate"]) == (401, "Bearer")


def test_pages_of_other_sites_cannot_use_a_password_that_the_browser_remembers(
    make_client: MakeClient, fake_worker: Any
) -> None:
    fake_worker.serve()
    api = make_client(keys=("first",), allowed_origins=frozenset({"https://good.example"}))
    interrupt = "/sdapi/v1/interrupt"
    for foreign in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
    ):
        error(api.post(interrupt, headers={**basic("first"), **foreign}), 403)
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert api.post(interrupt, headers={**basic("first"), **own}).status_code == 200
    good = {"Origin": "https://good.example", "Sec-Fetch-Site": "cross-site"}
    assert api.post(interrupt, headers={**basic("first"), **good}).status_code == 200


# Lists and options


def test_samplers_and_schedulers_are_those_of_the_cards(api: TestClient) -> None:
    samplers = api.get("/sdapi/v1/samplers").json()
    assert [each["name"] for each in samplers] == ["Heun", "DDIM", "DDPM"]
    assert samplers[0] == {"name": "Heun", "aliases": ["k_heun"], "options": {}}
    labels = [each["label"] for each in api.get("/sdapi/v1/schedulers").json()]
    assert labels[:3] == ["Automatic", "Uniform", "Karras"]


def test_what_the_server_has_none_of_is_an_empty_list(api: TestClient) -> None:
    assert api.get("/sdapi/v1/upscalers").json() == []
    assert api.get("/sdapi/v1/scripts").json() == {"txt2img": [], "img2img": []}
    assert api.get("/sdapi/v1/script-info").json() == []
    assert api.get("/sdapi/v1/loras").json() == []
    assert api.get("/sdapi/v1/loras?x=1").status_code == 422


def test_a_model_is_chosen_for_one_key_alone(
    make_client: MakeClient, fake_worker: Any, card_of: Any, painter: ModelCard
) -> None:
    fake_worker.serve(card_of(), painter)
    api = make_client(keys=("first", "second"))
    options, second = "/sdapi/v1/options", {"Authorization": "Bearer second"}
    titles = [each["title"] for each in api.get("/sdapi/v1/sd-models").json()]
    assert titles == ["shoes", "painter [0123456789]"]
    for name in ("painter", "painter [0123456789]", "0123456789"):
        answer = api.post(options, json={"sd_model_checkpoint": name, "samples_format": "png", "sd_vae": "Automatic"})
        assert (answer.status_code, answer.json()) == (200, None)
        assert api.get(options).json()["sd_model_checkpoint"] == "painter [0123456789]"
    assert api.get(options, headers=second).json()["sd_model_checkpoint"] == "shoes"
    refused = error(api.post(options, json={"sd_model_checkpoint": "none", "samples_format": "png"}), 422)
    assert "served: shoes, painter" in refused["detail"][0]["msg"]
    assert "only sd_model_checkpoint" in error(api.post(options, json={"CLIP_stop_at_last_layers": 2}), 422)["errors"]
    (item,) = error(api.post(TXT2IMG, json={"prompt": "a [goat|sheep]"}), 422)["detail"]  # read as a text prompt
    assert item["loc"] == ["body", "prompt"]
    shoes = {"prompt": "a cat", "override_settings": {"sd_model_checkpoint": "shoes"}}
    assert "names no class" in error(api.post(TXT2IMG, json=shoes), 422)["errors"]


def test_a_chosen_model_that_no_worker_serves_is_not_replaced_silently(
    make_client: MakeClient, fake_worker: Any, card_of: Any, painter: ModelCard
) -> None:
    fake_worker.serve(card_of(), painter)
    make_client().post("/sdapi/v1/options", json={"sd_model_checkpoint": "painter"})
    fake_worker.serve(card_of())
    api = make_client()
    assert api.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "painter"
    assert "painter" in error(api.post(TXT2IMG, json={"prompt": "sneaker"}), 503)["detail"]
    assert api.post("/sdapi/v1/options", json={"sd_model_checkpoint": "shoes"}).status_code == 200
    assert api.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "shoes"


# Progress and interruption


def test_progress_and_interrupt_reach_the_callers_jobs_of_this_api_alone(
    make_client: MakeClient, fake_worker: Any
) -> None:
    fake_worker.serve()
    api = make_client(keys=("first", "second"))
    second = {"Authorization": "Bearer second"}
    assert api.get("/sdapi/v1/progress").json() == {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "",
            "job_count": 0,
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": 0,
            "sampling_steps": 0,
        },
        "current_image": None,
        "textinfo": None,
    }
    other = api.post("/generate", json={"label": "sneaker"}).json()["id"]
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.append(api.post(TXT2IMG, json={"prompt": "sneaker", "steps": 20}))
    )
    waiting.start()
    while len(jobs := api.get("/jobs").json()["jobs"]) < 2:
        time.sleep(0.02)
    job = jobs[0]["id"]
    attempt = fake_worker.start(job)
    frame = {
        "type": "frame",
        "image": 0,
        "step": 10,
        "steps": 20,
        "kind": "x0",
        "media_type": "image/png",
        "data": "QUJD",
    }
    fake_worker.progress(job, attempt, 5, frame)
    found = api.get("/sdapi/v1/progress").json()
    assert (found["progress"], found["current_image"]) == (0.25, "QUJD")
    state = found["state"]
    assert (state["job"], state["job_count"], state["sampling_step"], state["sampling_steps"]) == (job, 1, 5, 20)
    assert api.get("/sdapi/v1/progress?skip_current_image=true").json()["current_image"] is None
    assert api.get("/sdapi/v1/progress", headers=second).json()["state"]["job_count"] == 0
    assert api.post("/sdapi/v1/interrupt", headers=second).json() == {}
    assert api.get(f"/jobs/{job}").json()["status"] == "running"
    assert api.post("/sdapi/v1/interrupt").json() == {}
    waiting.join()
    assert "was canceled" in error(answers[0], 409)["detail"]
    assert api.get(f"/jobs/{other}").json()["status"] == "queued"
    assert api.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0


def test_an_adapter_for_a_model_of_labels_is_refused_by_its_name(api: TestClient) -> None:
    (item,) = error(api.post(TXT2IMG, json={"prompt": "dog <lora:oil:1>"}), 422)["detail"]
    assert item["msg"].endswith('names the adapter "oil", but shoes takes no adapters')


# img2img

# What the package `webuiapi` sends for `img2img(images=[…])` besides.
FROM_A_PICTURE = {
    "resize_mode": 0,
    "denoising_strength": 0.75,
    "image_cfg_scale": 1.5,
    "mask_blur": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 1,
    "include_init_images": False,
}
IMG2IMG = "/sdapi/v1/img2img"


def picture_text(shade: int = 0) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(shade)).decode()}"


@pytest.fixture
def redrawing(make_client: MakeClient, fake_worker: Any, card_of: Callable[..., ModelCard]) -> TestClient:
    fake_worker.serve(card_of(pictures="start"))
    return make_client()


def fields_of(body: dict[str, Any], api: TestClient, card: ModelCard) -> dict[str, Any]:
    parsed = Img2ImgRequest.model_validate(body)
    services = api.app.state.services  # type: ignore[attr-defined]
    return {name: value for name, value in translate_img2img(parsed, card, services).items() if value is not None}


def test_a_picture_is_redrawn_as_the_package_asks(
    redrawing: TestClient, fake_worker: Any, card_of: Callable[..., ModelCard]
) -> None:
    body = {**CLIENT_DEFAULTS, **FROM_A_PICTURE, "init_images": [picture_text()]}
    found = fields_of(body, redrawing, card_of(pictures="start"))
    assert (found["image"], found["strength"], "mask" in found) == (picture_text(), 0.75, False)
    left_out = {"prompt": "sneaker", "init_images": [picture_text()]}
    assert fields_of(left_out, redrawing, card_of(pictures="start"))["strength"] == 0.75

    thread = start_worker(redrawing, fake_worker, lambda job, attempt: fake_worker.finish(job, attempt, data=png(9)))
    answer = redrawing.post(IMG2IMG, json=body)
    thread.join()
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert base64.b64decode(found["images"][0]) == png(9)
    assert "init_images" not in found["parameters"]
    info = json.loads(found["info"])
    assert info["denoising_strength"] == 0.75
    assert "Denoising strength: 0.75" in info["infotexts"][0]


def test_a_mask_is_inverted_and_what_is_not_served_of_it_is_named(
    redrawing: TestClient, card_of: Callable[..., ModelCard]
) -> None:
    card = card_of(pictures="start")
    served = {"inpainting_fill": 1, "inpaint_full_res": False, "inpainting_mask_invert": 1}
    body = {"prompt": "sneaker", "init_images": [picture_text()], "mask": picture_text(40), **served}
    mask = base64.b64decode(fields_of(body, redrawing, card)["mask"])
    assert Image.open(io.BytesIO(mask)).getpixel((0, 0)) == 215
    body = {**CLIENT_DEFAULTS, **FROM_A_PICTURE, "init_images": [picture_text()], "mask": picture_text()}
    with pytest.raises(InvalidRequest) as refusal:
        fields_of(body, redrawing, card)
    assert [each["field"] for each in refusal.value.extra["errors"]] == ["inpaint_full_res", "inpainting_fill"]
    with pytest.raises(InvalidRequest, match="mask_blur: 12 was given, but a mask with soft edges is not served"):
        fields_of({**body, **served, "mask_blur": 12}, redrawing, card)
    with pytest.raises(InvalidRequest, match="resize_mode: 2"):
        fields_of({**left_out_of(body), "resize_mode": 2}, redrawing, card)


def left_out_of(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("mask", "resize_mode")}


def test_errors_of_a_picture_name_the_web_uis_field(redrawing: TestClient) -> None:
    found = error(
        redrawing.post(IMG2IMG, json={"prompt": "sneaker", "init_images": ["https://example.org/a.png"]}), 422
    )
    assert found["detail"][0]["loc"] == ["body", "init_images"]
    assert "URLs are not fetched" in found["detail"][0]["msg"]
