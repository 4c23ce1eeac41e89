"""The package `webuiapi`, unchanged, with `ControlNetUnit`: the pictures of `controls` in `POST /generate`."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image

from tests.control_nets import control_image, controlled_pipeline, png
from tests.text_pipelines import PROMPT, SIZE

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers

MODEL = "tiny-sd"
EDGES, POSE, START = control_image(1), control_image(2), control_image(3)
OPTIONS: dict[str, Any] = {"prompt": PROMPT, "seed": 5, "width": SIZE, "height": SIZE, "cfg_scale": 4.0}


@pytest.fixture(scope="module")
def service(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = controlled_pipeline(tmp_path_factory.mktemp("pipelines"), MODEL)
    return start_service(tmp_path_factory.mktemp("units") / "data", *options)


@pytest.fixture(scope="module")
def api(service: Any) -> Any:
    """A client as a program written for the web UI creates it."""
    port = int(service.url.rpartition(":")[2])
    api = webuiapi.WebUIApi(host="127.0.0.1", port=port, sampler="Euler", steps=4)
    api.util_set_model(MODEL)
    return api


def fresh_options() -> dict[str, Any]:
    """`OPTIONS` with scripts of their own: the package adds units to its default argument, which calls would share."""
    return {**OPTIONS, "alwayson_scripts": {}}


def base64_of(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def control(name: str, image: Image.Image, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": base64_of(image), **fields}


def generated(service: Any, **fields: Any) -> bytes:
    """The same picture from `POST /generate`."""
    body = {
        "model": MODEL,
        "prompt": PROMPT,
        "seed": 5,
        "steps": 4,
        "sampler": "euler",
        "guidance_scale": 4.0,
        **fields,
    }
    with service.client() as client:
        answer = client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    content: bytes = answer.content
    return content


def test_units_of_a_listed_name_make_the_picture_of_generate(api: Any, service: Any) -> None:
    edges, pose = sorted(api.controlnet_model_list())
    assert (edges.partition(" ")[0], pose.partition(" ")[0]) == ("edges", "pose")
    assert api.controlnet_module_list() == ["none"]
    units = [
        webuiapi.ControlNetUnit(image=EDGES, model=edges, weight=0.7, guidance_end=0.5),
        webuiapi.ControlNetUnit(image=POSE, model=pose, control_mode=2),
        webuiapi.ControlNetUnit(image=POSE, model="another", module="canny", enabled=False),
    ]
    result = api.txt2img(**fresh_options(), controlnet_units=units)
    controls = [control("edges", EDGES, scale=0.7, end=0.5), control("pose", POSE, guess_mode=True)]
    found = base64.b64decode(result.json["images"][0])
    assert found == generated(service, controls=controls)
    assert found != generated(service)
    assert "Model: edges, Weight: 0.7" in result.info["infotexts"][0]


def test_a_picture_and_a_mask_combine_with_units_which_read_the_picture_if_they_have_none(
    api: Any, service: Any
) -> None:
    mask = Image.new("L", (SIZE, SIZE), 0)
    mask.paste(255, (0, 0, SIZE // 2, SIZE))
    served = {"inpaint_full_res": False, "inpainting_fill": 1, "denoising_strength": 0.75}
    units = [webuiapi.ControlNetUnit(model="edges"), webuiapi.ControlNetUnit(image=POSE, model="pose")]
    result = api.img2img(images=[START], mask_image=mask, **fresh_options(), **served, controlnet_units=units)
    controls = [control("edges", START), control("pose", POSE)]
    start = {"image": base64_of(START), "mask": base64_of(mask), "strength": 0.75}
    found = base64.b64decode(result.json["images"][0])
    assert found == generated(service, **start, controls=controls)
    assert found != generated(service, **start)


def test_a_control_picture_of_another_shape_is_cropped_and_the_answer_says_so(api: Any) -> None:
    wide = Image.fromarray(np.zeros((SIZE, 3 * SIZE, 3), np.uint8))
    result = api.txt2img(**fresh_options(), controlnet_units=[webuiapi.ControlNetUnit(image=wide, model="edges")])
    assert any("cropped" in warning for warning in result.info["warnings"])


def test_what_is_not_served_is_refused_by_its_name(api: Any) -> None:
    for options, name in (
        ({"image": EDGES, "module": "canny"}, "module"),
        ({"image": EDGES, "model": "depth"}, "model"),
        ({"image": EDGES, "control_mode": 1}, "control_mode"),
        ({"image": EDGES, "mask": EDGES}, "mask"),
        ({}, "image"),
    ):
        unit = webuiapi.ControlNetUnit(**{"model": "edges", **options})
        with pytest.raises(RuntimeError) as error:
            api.txt2img(**fresh_options(), controlnet_units=[unit])
        status, text = error.value.args
        assert status == 422
        assert f'"ControlNet","args","0","{name}"' in text
