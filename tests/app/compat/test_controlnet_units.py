"""`alwayson_scripts.ControlNet` and `/controlnet` with a fake worker. `tests/journeys/models/test_control_net_units.py`
runs the package `webuiapi` against real workers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from denoised.app.compat.a1111.a1111_schemas import Txt2ImgRequest
from denoised.app.compat.a1111.translation import renamed, translate
from denoised.app.http.errors import InvalidRequest
from denoised.model.serving.card import CardControl, ModelCard
from tests.app.compat.queued_worker import start_worker

MakeClient = Callable[..., TestClient]
TXT2IMG = "/sdapi/v1/txt2img"
DIGEST = "0123456789abcdef"
PLACE = "alwayson_scripts.ControlNet.args"
# What `webuiapi.ControlNetUnit(image=…, model="edges")` sends.
CLIENT_DEFAULTS: dict[str, Any] = {
    "mask": None,
    "module": "none",
    "model": "edges",
    "weight": 1.0,
    "resize_mode": "Resize and Fill",
    "low_vram": False,
    "processor_res": 512,
    "threshold_a": 64,
    "threshold_b": 64,
    "guidance_start": 0.0,
    "guidance_end": 1.0,
    "control_mode": "Balanced",
    "pixel_perfect": False,
    "hr_option": "Both",
    "enabled": True,
}


def picture(shade: int = 0) -> str:
    out = io.BytesIO()
    Image.new("RGB", (64, 32), (shade, 0, 0)).save(out, "png")
    return base64.b64encode(out.getvalue()).decode()


EDGES = picture()


@pytest.fixture(scope="session")
def card(painter_of: Callable[..., ModelCard]) -> ModelCard:
    controls = [CardControl(name="edges", digest=DIGEST, channels=3), CardControl(name="Pose", digest="f", channels=3)]
    return painter_of(controls=controls, pictures="start")


def request(*units: Any, name: str = "ControlNet", **body: Any) -> dict[str, Any]:
    return {"prompt": "a goat", "alwayson_scripts": {name: {"args": list(units)}}, **body}


def translated(card: ModelCard, *units: Any, **body: Any) -> Any:
    return translate(Txt2ImgRequest.model_validate(request(*units, **body)), card).get("controls")


def refused(card: ModelCard, *units: Any, **body: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refusal:
        translated(card, *units, **body)
    return {error["field"]: error["message"] for error in refusal.value.extra["errors"]}


def test_what_a_client_sends_unasked_is_accepted(card: ModelCard) -> None:
    assert translated(card, {**CLIENT_DEFAULTS, "image": EDGES}) == [
        {"name": "edges", "image": EDGES, "scale": 1.0, "start": 0.0, "end": 1.0, "guess_mode": False}
    ]


def test_units_are_controls_in_their_order_and_those_switched_off_are_left_out(card: ModelCard) -> None:
    found = translated(
        card,
        {"enabled": False, "module": "canny", "anything": 1},
        {"input_image": EDGES, "model": f"edges [{DIGEST[:8]}]", "weight": 2, "control_mode": 2, "module": "None"},
        None,
        {"image": EDGES, "model": "pose", "guidance_start": 0.25, "guidance_end": 0.5, "resize_mode": 1},
        name="controlnet",
    )
    assert [each["name"] for each in found] == ["edges", "Pose"]
    assert [each["scale"] for each in found] == [2, None]
    assert [each["guess_mode"] for each in found] == [True, False]
    assert (found[1]["start"], found[1]["end"]) == (0.25, 0.5)
    assert translated(card) is None
    assert translated(card, {"enabled": False}) is None


@pytest.mark.parametrize(
    ("unit", "field", "words"),
    [
        ({"module": "canny"}, "module", '"canny" was given, but a preprocessor is not served (allowed: none)'),
        ({"model": "depth"}, "model", f'"depth" is not offered by painter (offered: edges [{DIGEST[:8]}], Pose [f])'),
        ({"model": f"edges [{DIGEST[1:9]}]"}, "model", "is not offered"),
        ({"model": "None"}, "model", '"None" is not offered'),
        ({"model": None}, "model", "null was given"),
        ({"image": None}, "image", "is missing"),
        ({"image": 3}, "image", "3 was given"),
        ({"weight": 4.5}, "weight", "4.5 was given (allowed: 4 or less)"),
        ({"weight": "1"}, "weight", '"1" was given'),
        ({"guidance_start": -0.1}, "guidance_start", "-0.1 was given"),
        ({"control_mode": 1}, "control_mode", '"My prompt is more important" was given'),
        ({"control_mode": "Both"}, "control_mode", "(allowed: Balanced, ControlNet is more important)"),
        ({"mask": EDGES}, "mask", "a mask of a ControlNet is not served (allowed: null)"),
        ({"advanced_weighting": [1.0]}, "advanced_weighting", "a weight of each residual"),
        ({"guessmode": True}, "guessmode", "is not a field"),
        ({"guidance": 0.5}, "guidance", "is not a field"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(
    unit: dict[str, Any], field: str, words: str, card: ModelCard
) -> None:
    found = refused(card, {"enabled": False}, {"image": EDGES, "model": "edges", **unit})
    assert list(found) == [f"{PLACE}.1.{field}"]
    assert words in found[f"{PLACE}.1.{field}"]


def test_what_is_no_unit_is_refused_by_its_place(card: ModelCard) -> None:
    assert list(refused(card, "edges")) == [f"{PLACE}.0"]
    assert f"{PLACE}.0.field 0" in refused(card, {f"field {k}": k for k in range(50)} | {"image": EDGES})
    assert "ControlNet" in refused(card.model_copy(update={"controls": []}), {"model": "edges"})["alwayson_scripts"]


def test_errors_of_the_job_get_the_extensions_names() -> None:
    body = Txt2ImgRequest.model_validate(request({"enabled": False}, {"model": "a"}, {"model": "b"}))
    fields = ("controls.1.image", "controls.0.scale", "controls.1.end", "controls")
    error = renamed(InvalidRequest([(field, "message") for field in fields]), body)
    expected = [f"{PLACE}.2.image", f"{PLACE}.1.weight", f"{PLACE}.2.guidance_end", "alwayson_scripts"]
    assert [each["field"] for each in error.extra["errors"]] == expected


# Over HTTP


def test_a_job_has_the_controls_and_the_answer_no_pictures(
    make_client: MakeClient, fake_worker: Any, card: ModelCard
) -> None:
    fake_worker.serve(card)
    api = make_client()
    worker = start_worker(api, fake_worker, lambda job, attempt: fake_worker.finish(job, attempt) and None)
    answer = api.post(TXT2IMG, json=request({"image": EDGES, "model": "edges", "weight": 0.5}))
    worker.join()
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"]["alwayson_scripts"] == {
        "ControlNet": {"args": [{"image": None, "model": "edges", "weight": 0.5}]}
    }
    (infotext,) = json.loads(answer.json()["info"])["infotexts"]
    assert 'ControlNet 0: "Module: none, Model: edges, Weight: 0.5, Guidance Start: 0, ' in infotext
    (control,) = api.get(f"/jobs/{answer.headers['X-Job-Id']}").json()["controls"]
    assert (control["name"], control["scale"], control["image"][:7]) == ("edges", 0.5, "sha256:")


def test_what_the_job_refuses_is_named_by_the_unit(make_client: MakeClient, fake_worker: Any, card: ModelCard) -> None:
    fake_worker.serve(card)
    api = make_client()
    for unit, field in (({"image": "AAAA"}, "image"), ({"image": EDGES, "guidance_end": 0.0}, "guidance_end")):
        answer = api.post(TXT2IMG, json=request({"enabled": False}, {"model": "edges", **unit}))
        assert answer.status_code == 422, answer.text
        (item,) = answer.json()["detail"]
        assert item["loc"] == ["body", "alwayson_scripts", "ControlNet", "args", "1", field]


def test_the_extension_is_listed_among_the_scripts_while_a_model_offers_control_nets(
    make_client: MakeClient, fake_worker: Any, card: ModelCard
) -> None:
    fake_worker.serve(card)
    api = make_client()
    assert api.get("/sdapi/v1/scripts").json() == {"txt2img": ["controlnet"], "img2img": ["controlnet"]}
    info = api.get("/sdapi/v1/script-info").json()
    assert [(each["name"], each["is_alwayson"], each["is_img2img"]) for each in info] == [
        ("controlnet", True, False),
        ("controlnet", True, True),
    ]


def test_lists_are_those_of_the_extension(make_client: MakeClient, fake_worker: Any, card: ModelCard) -> None:
    fake_worker.serve(card)
    api = make_client(keys=("first",))
    assert api.get("/controlnet/model_list?update=false").json() == {
        "model_list": [f"edges [{DIGEST[:8]}]", "Pose [f]"]
    }
    assert api.get("/controlnet/module_list?alias_names=true").json() == {"module_list": ["none"]}
    basic = {"Authorization": f"Basic {base64.b64encode(b'anybody:first').decode()}"}
    assert api.get("/controlnet/model_list", headers=basic).status_code == 200
    wrong = api.get("/controlnet/model_list", headers={"Authorization": "Basic eDp5"})
    assert wrong.status_code == 401
    assert set(wrong.json()) == {"error", "detail", "body", "errors"}
